package sqlite

// The queries as they are made, so that their plans can be looked at.
var (
	TransactionQueries = []string{selectOne, selectOverdue, selectUnannounced, selectDecided, raiseRun, clearMark}
	DeliveryQueries    = []string{selectDue}
)
