package mongo

import (
	"context"
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"crivo/services/store"
)

const (
	// mostBytes of one document is the server's limit, less what a write says around it.
	mostBytes = 16<<20 - 16<<10
	// mostWrites and mostBytes keep a bulk one command (a server takes 100,000 writes and 48 MB): where the driver makes
	// several of one call, the write-concern error of an earlier one can be lost.
	mostWrites = 1000
)

// write is one insert or update of a bulk. What is too large for any server is refused before it is sent.
type write struct {
	model mongo.WriteModel
	size  int
	err   error // the document cannot be written as BSON
}

// insert is a write of a whole document.
func insert(document any) write {
	raw, err := bson.Marshal(document)
	return write{mongo.NewInsertOneModel().SetDocument(bson.Raw(raw)), len(raw), err}
}

// update is a write of the fields in set to the one document of filter, without those named in unset.
func update(filter bson.D, set any, unset ...string) write {
	raw, err := bson.Marshal(set)
	change := bson.D{{Key: "$set", Value: bson.Raw(raw)}}
	if len(unset) > 0 {
		change = append(change, without(unset))
	}
	return write{mongo.NewUpdateOneModel().SetFilter(filter).SetUpdate(change), len(raw), err}
}

// without is the part of an update that removes fields.
func without(fields []string) bson.E {
	out := make(bson.D, len(fields))
	for i, f := range fields {
		out[i] = bson.E{Key: f, Value: ""}
	}
	return bson.E{Key: "$unset", Value: out}
}

// bulk makes writes in unordered commands, all inserts or all updates. verdicts has what became of each: nil, errDuplicate or
// store.ErrRefused; matched is how many updates found their document. An error means that the outcome of each is unknown.
func bulk(ctx context.Context, c *mongo.Collection, writes []write) (verdicts []error, matched int64, err error) {
	verdicts = make([]error, len(writes))
	var some []int // places of one command's writes
	size := 0
	send := func() error {
		n, err := command(ctx, c, writes, some, verdicts)
		matched += n
		some, size = some[:0], 0
		return err
	}
	for i, w := range writes {
		switch {
		case w.err != nil:
			verdicts[i] = fmt.Errorf("%w: no BSON", store.ErrRefused)
			continue
		case w.size > mostBytes:
			verdicts[i] = fmt.Errorf("%w: %d bytes", store.ErrRefused, w.size)
			continue
		case len(some) == mostWrites || size+w.size > mostBytes:
			if err := send(); err != nil {
				return nil, 0, err
			}
		}
		some, size = append(some, i), size+w.size
	}
	if err := send(); err != nil {
		return nil, 0, err
	}
	return verdicts, matched, nil
}

var unordered = options.BulkWrite().SetOrdered(false)

// command makes the writes at some places in one command.
func command(ctx context.Context, c *mongo.Collection, writes []write, some []int, verdicts []error) (matched int64, err error) {
	if len(some) == 0 {
		return 0, nil
	}
	models := make([]mongo.WriteModel, len(some))
	for k, i := range some {
		models[k] = writes[i].model
	}
	res, err := c.BulkWrite(ctx, models, unordered)
	var items mongo.BulkWriteException
	var whole mongo.CommandError
	switch {
	case err == nil:
		return res.MatchedCount, nil
	case errors.As(err, &items) && items.WriteConcernError == nil:
		for _, e := range items.WriteErrors {
			v, known := verdict(e.Code)
			if !known {
				return 0, err
			}
			verdicts[some[e.Index]] = v
		}
		return res.MatchedCount, nil
	case errors.As(err, &whole) && codes[int(whole.Code)] == refused:
		return halves(ctx, c, writes, some, verdicts, int(whole.Code))
	}
	return 0, err
}

// halves finds the writes for which the server refused a whole command, and makes the others.
func halves(ctx context.Context, c *mongo.Collection, writes []write, some []int, verdicts []error, code int) (matched int64, err error) {
	if len(some) == 1 {
		verdicts[some[0]] = refusal(code)
		return 0, nil
	}
	for _, half := range [][]int{some[:len(some)/2], some[len(some)/2:]} {
		n, err := command(ctx, c, writes, half, verdicts)
		if err != nil {
			return 0, err
		}
		matched += n
	}
	return matched, nil
}
