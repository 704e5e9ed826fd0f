package mongo

import (
	"context"
	"errors"

	"go.mongodb.org/mongo-driver/v2/bson"

	"crivo/services/store"
)

// decision is what a decision sets in a claim. The claim's own fields stay as they are.
type decision struct {
	Event       []byte        `bson:"event"`
	Decision    string        `bson:"decision"`
	Reasons     []string      `bson:"reasons,omitempty"`
	Tokens      []string      `bson:"tokens,omitempty"`
	DecidedAt   bson.DateTime `bson:"decided_at"`
	Unannounced bool          `bson:"unannounced,omitempty"`
	Call        bson.ObjectID `bson:"call"`
	ExpireAt    bson.DateTime `bson:"expire_at"`
}

// Decide completes each document where no decision is, and inserts it whole where it is missing.
func (t *Transactions) Decide(ctx context.Context, decides []store.Decide) ([]store.Outcome, error) {
	out := make([]store.Outcome, len(decides))
	for _, group := range apart(len(decides), func(i int) store.Key { return decides[i].Key }) {
		if err := t.decide(ctx, decides, group, out); err != nil {
			return nil, failed("decide", err)
		}
	}
	return out, nil
}

// decide settles the decisions at todo, no two of which have one key. Nearly always all of them complete a claim, and the one
// command says so by its count. Else the documents are read: the call's own mark tells which decisions it made, in this try or in
// one whose answer was lost; what is missing is inserted whole; what was claimed meanwhile goes round once more.
func (t *Transactions) decide(ctx context.Context, decides []store.Decide, todo []int, out []store.Outcome) error {
	call := bson.NewObjectID()
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		rest, all, err := t.complete(ctx, call, decides, todo, out)
		if err != nil || all {
			return err
		}
		found, err := t.read(ctx, rest, func(i int) store.Key { return decides[i].Key })
		if err != nil {
			return err
		}
		var missing, again []int
		for _, i := range rest {
			x, ok := found[decides[i].Key]
			switch {
			case !ok:
				missing = append(missing, i)
			case x.Call == call:
				out[i] = store.Outcome{Status: store.DecidedNow, Entry: x.entry()}
			case x.Digest != decides[i].Digest:
				out[i] = store.Outcome{Status: store.DigestConflict, Entry: x.entry()}
			case !x.Open:
				out[i] = store.Outcome{Status: store.DecidedBefore, Entry: x.entry()}
			default: // claimed since, or decided by another and not yet known to a majority
				again = append(again, i)
			}
		}
		taken, err := t.insertWhole(ctx, call, decides, missing, out)
		if err != nil {
			return err
		}
		if todo = append(again, taken...); len(todo) == 0 {
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// complete updates the claims of todo where no decision is. all tells that every claim was completed, else the rest of todo is
// what the server did not refuse: some of them may be.
func (t *Transactions) complete(ctx context.Context, call bson.ObjectID, decides []store.Decide, todo []int, out []store.Outcome) (rest []int, all bool, err error) {
	writes := make([]write, len(todo))
	for k, i := range todo {
		d := &decides[i]
		writes[k] = update(bson.D{byID(idOf(d.Key)), open, {Key: "digest", Value: d.Digest}}, t.decision(call, d), "open", "body")
	}
	verdicts, matched, err := bulk(ctx, t.c, writes)
	if err != nil {
		return nil, false, err
	}
	for k, i := range todo {
		if verdicts[k] != nil {
			out[i] = store.Outcome{Err: verdicts[k]}
			continue
		}
		out[i] = decidedNow(&decides[i])
		rest = append(rest, i)
	}
	return rest, matched == int64(len(rest)), nil
}

func (t *Transactions) decision(call bson.ObjectID, d *store.Decide) decision {
	return decision{Event: d.Event, Decision: d.Decision, Reasons: d.Reasons, Tokens: d.Tokens, DecidedAt: bson.NewDateTimeFromTime(d.DecidedAt),
		Unannounced: d.Unannounced, Call: call, ExpireAt: bson.NewDateTimeFromTime(d.DecidedAt.Add(t.keep))}
}

func decidedNow(d *store.Decide) store.Outcome {
	return store.Outcome{Status: store.DecidedNow, Entry: store.Entry{Claim: d.Claim, Event: d.Event, DecidedAt: d.DecidedAt, Unannounced: d.Unannounced}}
}

// insertWhole inserts decisions that have no claim and returns those whose key another took meanwhile.
func (t *Transactions) insertWhole(ctx context.Context, call bson.ObjectID, decides []store.Decide, missing []int, out []store.Outcome) (taken []int, err error) {
	writes := make([]write, len(missing))
	for k, i := range missing {
		d := &decides[i]
		x := claimed(d.Claim)
		x.Open, x.Body = false, nil
		x.Event, x.Decision, x.Reasons, x.Tokens, x.DecidedAt = d.Event, d.Decision, d.Reasons, d.Tokens, d.DecidedAt
		x.Unannounced, x.Call, x.ExpireAt = d.Unannounced, call, d.DecidedAt.Add(t.keep)
		writes[k] = insert(x)
	}
	verdicts, _, err := bulk(ctx, t.c, writes)
	if err != nil {
		return nil, err
	}
	for k, i := range missing {
		switch err := verdicts[k]; {
		case err == nil:
			out[i] = decidedNow(&decides[i])
		case errors.Is(err, errDuplicate):
			taken = append(taken, i)
		default:
			out[i] = store.Outcome{Err: err}
		}
	}
	return taken, nil
}
