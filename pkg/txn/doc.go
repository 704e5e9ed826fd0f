// Package txn holds the words of the pipeline: the transaction as a client sends it, the same transaction sealed, money, and
// the decision that comes out. It decodes and validates, naming every fault by JSON pointer, and knows no store and no subject.
package txn
