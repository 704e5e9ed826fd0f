package streams

import (
	"context"
	"strconv"
	"strings"
	"unicode"

	"github.com/nats-io/nats.go"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/streams/event"
)

// Headers of a dead letter, beside those that the message had.
const (
	HeaderStep      = "Crivo-Dead-Step"
	HeaderCause     = "Crivo-Dead-Cause"
	HeaderStream    = "Crivo-Dead-Stream"
	HeaderSequence  = "Crivo-Dead-Sequence"
	HeaderSubject   = "Crivo-Dead-Subject"
	HeaderMessageID = "Crivo-Dead-Message-Id"
	HeaderAttempts  = "Crivo-Dead-Attempts" // those on record: the first run is not
	HeaderFirstAt   = "Crivo-Dead-First-At" // Unix ms, when the broker stored the message
	HeaderDetail    = "Crivo-Dead-Detail"
)

// NoTenant stands in a letter's subject for a tenant that could not be read. No tenant may have this name.
const NoTenant = "unknown"

// Faulted is the reason code of a decision made because processing failed.
const Faulted = "PROCESSING_FAULT"

// Body returns the accepted transaction for a message whose own body cannot be read; from the claim, in practice.
type Body func(ctx context.Context, i Ident) (event.Submitted, error)

// Bury returns what the runner of step publishes before it gives a message up: the dead letter with the bytes as they were,
// then a scored event with decision review, so that the transaction is decided all the same. Notify's dead letters, and those
// without identity, stand alone: nothing is left to decide, or nobody knows for whom.
func Bury(spec stage.Spec, body Body) func(context.Context, stage.Burial) ([]stage.Output, error) {
	return func(ctx context.Context, b stage.Burial) ([]stage.Output, error) {
		ident, identErr := ReadIdent(b.Message.Header)
		out := []stage.Output{letter(spec, b, ident)}
		if identErr != nil || spec.Step == Notify.Step || spec.Step == Persist.Step {
			return out, nil
		}
		scored, err := synthetic(ctx, b, ident, body)
		if err != nil {
			return nil, err
		}
		data, err := event.Encode(scored)
		if err != nil {
			return nil, err
		}
		fate := Message(ident, EventScored, data)
		fate.ID = ident.Tenant + "/" + ident.ID + "/buried/" + spec.Step + "/" + strconv.Itoa(ident.Run)
		return append(out, fate), nil
	}
}

func letter(spec stage.Spec, b stage.Burial, ident Ident) stage.Output {
	h := nats.Header{}
	for name, values := range b.Message.Header {
		if !strings.HasPrefix(name, "Nats-") {
			h[name] = values
		}
	}
	h.Set(HeaderStep, b.Step)
	h.Set(HeaderCause, b.Cause)
	h.Set(HeaderStream, spec.Stream)
	h.Set(HeaderSequence, strconv.FormatUint(b.Message.Sequence, 10))
	h.Set(HeaderSubject, line(b.Message.Subject))
	if id := b.Message.Header.Get(nats.MsgIdHdr); id != "" {
		h.Set(HeaderMessageID, line(id))
	}
	h.Set(HeaderAttempts, strconv.Itoa(b.Attempts))
	h.Set(HeaderFirstAt, strconv.FormatInt(b.Message.Stored.UnixMilli(), 10))
	if b.Err != nil {
		h.Set(HeaderDetail, line(b.Err.Error()))
	}
	tenant := ident.Tenant
	if !tenantName.MatchString(tenant) {
		tenant = NoTenant // a subject must not be made of rubbish: the letter could never be stored
	}
	return stage.Output{Subject: "dlq." + b.Step + "." + b.Cause + "." + tenant, Header: h, Data: b.Message.Data,
		ID: b.Step + "/" + spec.Stream + "/" + strconv.FormatUint(b.Message.Sequence, 10) + "/" + strconv.FormatInt(b.Message.Stored.UnixMilli(), 10)}
}

// line is text on one line, cut so that the letter stays within the broker's limit whatever an error quotes.
func line(text string) string {
	const most = 1 << 10
	text = strings.ToValidUTF8(strings.Map(printable, text), "")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}

func printable(r rune) rune {
	if unicode.IsControl(r) {
		return ' '
	}
	return r
}

// synthetic is the event that gets a buried transaction decided: what is known of it, and the decision review.
func synthetic(ctx context.Context, b stage.Burial, ident Ident, body Body) (event.Scored, error) {
	var s event.Scored
	v, err := event.Decode[event.Validated](b.Message.Data)
	if err == nil && v.Tenant == ident.Tenant && v.ID == ident.ID {
		s.Validated = v // each event reads as the ones it holds
	} else {
		s.Submitted = event.Submitted{Schema: event.Schema, Tenant: ident.Tenant, ID: ident.ID, Run: ident.Run,
			ClaimedAt: txn.At(ident.AcceptedAt), AcceptedAt: txn.At(ident.AcceptedAt), Deadline: txn.At(ident.Deadline), Digest: ident.Digest}
		if body != nil {
			known, err := body(ctx, ident)
			if err != nil {
				return s, err
			}
			s.Submitted = known
		}
	}
	s.Verdict = Fault(b.Step, b.Cause, s.RuleSet)
	return s, nil
}

// Fault is the verdict of a transaction whose processing failed for good.
func Fault(step, cause string, set txn.RuleSet) txn.Verdict {
	return txn.Verdict{Decision: txn.Review, Score: 50, RiskBand: "medium", RuleSet: set, Reasons: []txn.Reason{{Code: Faulted,
		Text: "could not be processed (" + step + ": " + cause + "), a person must look", Rule: "processing", Points: 0}}}
}
