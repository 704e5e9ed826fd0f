package sqlite

import "crivo/services/store"

// The queries as they are made, so that their plans can be looked at.
var (
	TransactionQueries = []string{selectOne, selectOverdue, selectUnannounced, selectDecided, raiseRun, clearMark, dispose}
	DeliveryQueries    = []string{selectDue, selectSpan, askAgain}
)

// The schemas of the first files.
var (
	FirstTransactionSchema = transactionSchema[0]
	FirstDeliverySchema    = deliverySchema[0]
)

// ListQuery is the query of a page of deliveries.
func ListQuery(q store.DeliveryQuery) string { return listing(q, 1).text }

// SearchQueries are the walks that a search makes.
func SearchQueries(q store.Query) []string {
	after, started, _ := q.After()
	var out []string
	for _, w := range searches(q, after, started) {
		out = append(out, w.text)
	}
	return out
}
