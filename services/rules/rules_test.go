package rules_test

import (
	"crivo/services/rules"
	"testing"
)

func TestDefault(t *testing.T) {
	s, err := rules.Default()
	if err != nil {
		t.Fatal(err)
	}
	_ = s
}
