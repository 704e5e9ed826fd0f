package memory_test

import (
	"testing"

	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/services/store/storetest"
)

func TestTransactions(t *testing.T) {
	storetest.Transactions(t, func(*testing.T) store.Transactions { return memory.NewTransactions() })
}

func TestSearch(t *testing.T) {
	storetest.Search(t, func(*testing.T) store.Transactions { return memory.NewTransactions() })
}

func TestRegistry(t *testing.T) {
	storetest.Registry(t, func(*testing.T) store.Registry { return memory.NewRegistry() })
}

func TestDeliveries(t *testing.T) {
	storetest.Deliveries(t, func(*testing.T) store.Deliveries { return memory.NewDeliveries() })
}
