package runner_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
	"crivo/streams"
)

// letterOf is what a step's runner writes of its n-th message.
func letterOf(t testing.TB, step stage.Spec, cause string, header nats.Header, n int) stage.Output {
	t.Helper()
	m := stage.Message{Subject: "tx.x.acme", Header: header, Data: []byte(strings.Repeat("x", 64)), Sequence: uint64(n), Stored: time.UnixMilli(1_795_388_711_500)}
	out, err := streams.Bury(step, nil)(t.Context(), stage.Burial{Step: step.Step, Message: m, Cause: cause, Err: errors.New("why"), Attempts: 3})
	if err != nil {
		t.Fatal(err)
	}
	return out[0]
}

func acme(n int) nats.Header {
	h := streams.Ident{Tenant: "acme", ID: strconv.Itoa(n), Run: 2, AcceptedAt: time.UnixMilli(1), Deadline: time.UnixMilli(2), Digest: "k:d"}.Header()
	h.Set(nats.MsgIdHdr, "acme/"+strconv.Itoa(n)+"/x/2")
	return h
}

// letterRig is a broker with the streams, and the edge's own right to letters.
func letterRig(t testing.TB, letters ...stage.Output) (edge jetstream.JetStream, denied *notes) {
	t.Helper()
	s := guarded(t)
	denied = &notes{}
	keeper, err := jetstream.New(login(t, s, "keeper", denied))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := streams.Ensure(t.Context(), keeper, layout); err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(letters, 1000) {
		if _, err := (stage.Publisher{JS: keeper, BatchFrom: 2}).Publish(t.Context(), part); err != nil {
			t.Fatal(err)
		}
	}
	if edge, err = jetstream.New(login(t, s, "edge", denied)); err != nil {
		t.Fatal(err)
	}
	return edge, denied
}

func read(t testing.TB, js jetstream.JetStream, q streams.LetterQuery) (out []streams.Letter) {
	t.Helper()
	for l, err := range streams.Letters(t.Context(), js, q) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func TestALetterIsReadBackAsItWasWritten(t *testing.T) {
	t.Parallel()
	half := nats.Header{streams.HeaderTenant: {"acme"}, streams.HeaderID: {"7"}}
	js, denied := letterRig(t, letterOf(t, streams.Score, stage.CausePanic, acme(1), 42), letterOf(t, streams.Enrich, stage.CauseDecode, nil, 43),
		letterOf(t, streams.Notify, stage.CauseReject, half, 44), stage.Output{Subject: "dlq.other.words.acme", ID: "bare", Data: []byte("bare")},
		stage.Output{Subject: "dlq.score.panic.other", ID: "forged", Header: acme(1)}, stage.Output{Subject: "dlq.too.few", ID: "few"})
	got := read(t, js, streams.LetterQuery{})
	if len(got) != 5 {
		t.Fatalf("%d letters", len(got))
	}
	first := got[0]
	if !first.FirstAt.Equal(time.UnixMilli(1_795_388_711_500)) || time.Since(first.LastAt) > time.Hour {
		t.Errorf("from %s to %s", first.FirstAt, first.LastAt)
	}
	ident, err := streams.ReadIdent(acme(1))
	if err != nil {
		t.Fatal(err)
	}
	want := streams.Letter{Sequence: 1, Step: "score", Cause: "panic", Tenant: "acme", Ident: ident, Attempts: 3, FirstAt: first.FirstAt, LastAt: first.LastAt,
		Detail: "why", Stream: streams.Validated, Subject: "tx.x.acme", MessageID: "acme/1/x/2"}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Error(diff)
	}
	for i, tenant := range []string{"acme", streams.NoTenant, "acme", "acme", "other"} {
		if l := got[i]; l.Tenant != tenant || (l.Unknown == nil) != (i == 0) || l.Attempts < 1 || l.FirstAt.IsZero() {
			t.Errorf("%d: %+v", i, l)
		}
	}
	if got := denied.list(); len(got) > 0 {
		t.Errorf("denied %v", got)
	}
}

func TestLettersAreReadOverManyBatchesAndHoles(t *testing.T) {
	t.Parallel()
	var letters []stage.Output
	for n := 1; n <= 1000; n++ {
		letters = append(letters, letterOf(t, []stage.Spec{streams.Score, streams.Notify}[n%2], []string{stage.CausePanic, stage.CauseCrash}[n/2%2], acme(n), n))
	}
	js, denied := letterRig(t, letters...)
	s, err := js.Stream(t.Context(), streams.DeadLetters)
	if err != nil {
		t.Fatal(err)
	}
	for n := uint64(200); n < 600; n += 3 {
		if err := s.DeleteMsg(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	all := read(t, js, streams.LetterQuery{})
	if len(all) != 1000-134 {
		t.Errorf("%d letters", len(all))
	}
	middle := all[len(all)/2]
	for name, tc := range map[string]struct {
		q  streams.LetterQuery
		is func(l streams.Letter) bool
	}{
		"of a step":           {streams.LetterQuery{Step: "score"}, func(l streams.Letter) bool { return l.Step == "score" }},
		"of a step and cause": {streams.LetterQuery{Step: "notify", Cause: "crash", Tenant: "acme"}, func(l streams.Letter) bool { return l.Step == "notify" && l.Cause == "crash" }},
		"of another tenant":   {streams.LetterQuery{Tenant: "other"}, func(streams.Letter) bool { return false }},
		"from a letter on":    {streams.LetterQuery{First: 500}, func(l streams.Letter) bool { return l.Sequence >= 500 }},
		"up to a letter":      {streams.LetterQuery{Last: 500}, func(l streams.Letter) bool { return l.Sequence <= 500 }},
		"one that is gone":    {streams.LetterQuery{First: 200, Last: 200}, func(streams.Letter) bool { return false }},
		"beyond the last":     {streams.LetterQuery{First: 1001}, func(streams.Letter) bool { return false }},
		"from a time":         {streams.LetterQuery{From: middle.LastAt}, func(l streams.Letter) bool { return !l.LastAt.Before(middle.LastAt) }},
		"before a time":       {streams.LetterQuery{To: middle.LastAt}, func(l streams.Letter) bool { return l.LastAt.Before(middle.LastAt) }},
		"from now on":         {streams.LetterQuery{From: time.Now().Add(time.Hour)}, func(streams.Letter) bool { return false }},
	} {
		var want, got []uint64
		for _, l := range all {
			if tc.is(l) {
				want = append(want, l.Sequence)
			}
		}
		for _, l := range read(t, js, tc.q) {
			got = append(got, l.Sequence)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	n := 0
	for range streams.Letters(t.Context(), js, streams.LetterQuery{}) {
		if n++; n == 3 {
			break
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range streams.Letters(ended, js, streams.LetterQuery{}) {
		if err == nil {
			t.Error("read on after the end of its context")
		}
	}
	if s, err = js.Stream(t.Context(), streams.DeadLetters); err != nil || s.CachedInfo().State.Consumers != 0 {
		t.Errorf("consumers were made, or %v", err)
	}
	if got := denied.list(); len(got) > 0 {
		t.Errorf("denied %v", got)
	}
}

func TestTheEdgeMayMakeNoConsumerOfLetters(t *testing.T) {
	t.Parallel()
	js, denied := letterRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := js.CreateConsumer(ctx, streams.DeadLetters, jetstream.ConsumerConfig{Durable: "mine"}); err == nil {
		t.Error("it did")
	}
	wait(t, "it is denied", func() bool {
		return slices.ContainsFunc(denied.list(), func(s string) bool { return strings.HasPrefix(s, "$JS.API.CONSUMER.") })
	})
}
