package enrich_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/enrich"
	"crivo/services/store/memory"
	"crivo/streams"
	"crivo/streams/event"
)

var (
	noon   = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	pinned = txn.RuleSet{Name: "s", Version: 3, Digest: "sha256:x"}
)

// submitted is a payment of payer p, seconds after noon, at terminal 9.
func submitted(id string, seconds int) event.Submitted {
	at := noon.Add(time.Duration(seconds) * time.Second)
	return event.Submitted{Schema: 1, Tenant: "t", ID: id, Run: 1, ClaimedAt: txn.At(at), AcceptedAt: txn.At(at), Deadline: txn.At(at.Add(2 * time.Second)), Digest: "d",
		Tx: txn.Sealed{ID: id, Type: "card", Amount: 100, Currency: "BRL", CreatedAt: txn.At(at), Payer: txn.SealedParty{CustomerID: "p"},
			Merchant: &txn.Merchant{TerminalID: "9"}}}
}

func message(t testing.TB, s event.Submitted, sequence uint64) stage.Message {
	t.Helper()
	data, err := event.Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	return stage.Message{Header: ident(s).Header(), Data: data, Sequence: sequence, Deliveries: 1}
}

func ident(s event.Submitted) streams.Ident {
	return streams.Ident{Tenant: s.Tenant, ID: s.ID, Run: s.Run, AcceptedAt: s.AcceptedAt.Time, Deadline: s.Deadline.Time, Digest: s.Digest}
}

// counting is a feature store that tells what it was asked for.
type counting struct {
	*memory.Features
	calls  int
	events []enrich.Event
}

func (c *counting) Apply(ctx context.Context, events []enrich.Event) ([][]enrich.History, error) {
	c.calls++
	c.events = append(c.events, events...)
	return c.Features.Apply(ctx, events)
}

func store(t testing.TB, dir string) *counting {
	t.Helper()
	f, err := memory.OpenFeatures(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &counting{Features: f}
}

func step(f enrich.Features) enrich.Stage {
	return enrich.Stage{Features: f, RuleSet: func() txn.RuleSet { return pinned }}
}

func enriched(t testing.TB, r stage.Result) event.Enriched {
	t.Helper()
	if r.Err != nil || len(r.Outputs) != 1 {
		t.Fatalf("got %+v", r)
	}
	e, err := event.Decode[event.Enriched](r.Outputs[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestWhichKeyForWhichParty(t *testing.T) {
	document, account := &txn.SealedDocument{Token: "doc"}, &txn.SealedAccount{Token: "acc"}
	key, nameless := &txn.SealedPixKey{Token: "key"}, &txn.SealedAccount{ISPB: "12345678"}
	entities := func(pairs ...string) []enrich.Entity {
		var out []enrich.Entity
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, enrich.Entity{Role: pairs[i], Key: pairs[i+1]})
		}
		return out
	}
	for name, tc := range map[string]struct {
		tx   txn.Sealed
		want []enrich.Entity
	}{
		"a document before all": {txn.Sealed{Payer: txn.SealedParty{Document: document, CustomerID: "cus", Account: account, PixKey: key}}, entities("payer", "t/payer/doc")},
		"then the customer":     {txn.Sealed{Payer: txn.SealedParty{CustomerID: "cus", Account: account, PixKey: key}}, entities("payer", "t/payer/cus")},
		"then the account":      {txn.Sealed{Payer: txn.SealedParty{CustomerID: "cus"}, Payee: &txn.SealedParty{Account: account, PixKey: key}}, entities("payer", "t/payer/cus", "payee", "t/payee/acc")},
		"then the Pix key":      {txn.Sealed{Payer: txn.SealedParty{CustomerID: "cus"}, Payee: &txn.SealedParty{Account: nameless, PixKey: key}}, entities("payer", "t/payer/cus", "payee", "t/payee/key")},
		"a payee without any":   {txn.Sealed{Payer: txn.SealedParty{CustomerID: "cus"}, Payee: &txn.SealedParty{Account: nameless}}, entities("payer", "t/payer/cus")},
		"one person on both sides": {txn.Sealed{Payer: txn.SealedParty{Document: document}, Payee: &txn.SealedParty{Document: document}},
			entities("payer", "t/payer/doc", "payee", "t/payee/doc")},
		"device and terminal": {txn.Sealed{Payer: txn.SealedParty{CustomerID: "cus"}, Device: &txn.SealedDevice{ID: "dev"}, Merchant: &txn.Merchant{ID: "m", TerminalID: "9"}},
			entities("payer", "t/payer/cus", "device", "t/device/dev", "terminal", "t/terminal/9")},
		"a device and a merchant without": {txn.Sealed{Payer: txn.SealedParty{CustomerID: "cus"}, Device: &txn.SealedDevice{OS: "ios"}, Merchant: &txn.Merchant{ID: "m"}},
			entities("payer", "t/payer/cus")},
	} {
		t.Run(name, func(t *testing.T) {
			tc.tx.Amount, tc.tx.CreatedAt = 7, txn.At(noon)
			got := enrich.EventOf(event.Submitted{Tenant: "t", ID: "a", AcceptedAt: txn.At(noon.Add(time.Hour)), Tx: tc.tx}, 5)
			if diff := cmp.Diff(enrich.Event{Key: "t/a", Sequence: 5, At: noon, Amount: 7, Entities: tc.want}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestABatchIsOneCallAndEachEventSeesThoseBefore(t *testing.T) {
	f := store(t, t.TempDir())
	batch := []stage.Message{message(t, submitted("a", 0), 1), message(t, submitted("b", 10), 2), message(t, submitted("c", 400), 3)}
	out := step(f).Handle(context.Background(), batch)
	if f.calls != 1 || len(f.events) != 3 {
		t.Errorf("%d calls for %d events", f.calls, len(f.events))
	}
	number := func(n float64) event.Value { return event.Value{Known: true, Number: n} }
	for i, want := range []map[string]event.Value{
		{"payer.count_5m": number(1), "payer.sum_5m": number(100), "payer.count_30d": number(1), "payer.first_seen_s": number(0)},
		{"payer.count_5m": number(2), "payer.sum_5m": number(200), "payer.count_30d": number(2), "payer.first_seen_s": number(10)},
		{"payer.count_5m": number(1), "payer.sum_5m": number(100), "payer.count_30d": number(3), "payer.first_seen_s": number(400)},
	} {
		e := enriched(t, out[i])
		for name, v := range want {
			if e.Features[name] != v {
				t.Errorf("event %d: %s is %v, want %v", i, name, e.Features[name], v)
			}
		}
		if len(e.Features) != 18 || e.RuleSet != pinned || e.Degraded == nil || len(e.Degraded) != 0 {
			t.Errorf("event %d: got %+v", i, e)
		}
		if o := out[i].Outputs[0]; o.Subject != "tx.enriched.t" || o.ID != fmt.Sprintf("t/%s/enriched/1", e.ID) {
			t.Errorf("announced as %s on %s", o.ID, o.Subject)
		}
	}
}

func TestARepeatGivesTheSameBytes(t *testing.T) {
	s := step(store(t, t.TempDir()))
	batch := []stage.Message{message(t, submitted("a", 0), 1), message(t, submitted("b", 10), 2)}
	first := s.Handle(context.Background(), batch)
	s.Handle(context.Background(), []stage.Message{message(t, submitted("c", 20), 3)})
	if diff := cmp.Diff(first, s.Handle(context.Background(), batch)); diff != "" {
		t.Error(diff)
	}
}

func TestWhatCannotBeReadDisturbsNobody(t *testing.T) {
	f := store(t, t.TempDir())
	newer := submitted("n", 0)
	newer.Schema = event.Schema + 1
	headless := message(t, submitted("h", 0), 3)
	headless.Header = nil
	out := step(f).Handle(context.Background(), []stage.Message{{Data: []byte("{")}, message(t, submitted("a", 0), 2), headless, message(t, newer, 4), message(t, submitted("b", 1), 5)})
	if !stage.IsUndecodable(out[0].Err) || !stage.IsUndecodable(out[2].Err) || !stage.IsHold(out[3].Err) {
		t.Errorf("got %v, %v, %v", out[0].Err, out[2].Err, out[3].Err)
	}
	if a, b := enriched(t, out[1]), enriched(t, out[4]); a.ID != "a" || b.ID != "b" || b.Features["payer.count_5m"].Number != 2 {
		t.Errorf("got %+v, %+v", a, b)
	}
	if len(f.events) != 2 {
		t.Errorf("%d events counted", len(f.events))
	}
}

func TestNothingToApplyIsNoCall(t *testing.T) {
	f := store(t, t.TempDir())
	if out := step(f).Handle(context.Background(), nil); len(out) != 0 {
		t.Errorf("got %v", out)
	}
	if out := step(f).Handle(context.Background(), []stage.Message{{Data: []byte("{")}}); len(out) != 1 || out[0].Err == nil {
		t.Errorf("got %v", out)
	}
	if f.calls != 0 {
		t.Errorf("%d calls", f.calls)
	}
}

// failing is a feature store that is down, or slow until its caller gives up.
type failing struct{ slow bool }

func (f failing) Apply(ctx context.Context, _ []enrich.Event) ([][]enrich.History, error) {
	if f.slow {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, errors.New("down")
}

func TestTheFlowGoesOnWithoutTheFeatureStore(t *testing.T) {
	for name, f := range map[string]failing{"down": {}, "slow": {slow: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				out := step(f).Handle(context.Background(), []stage.Message{{Data: []byte("{")}, message(t, submitted("a", 0), 2)})
				if waited := time.Since(start); waited > 100*time.Millisecond {
					t.Errorf("waited %v", waited)
				}
				if !stage.IsUndecodable(out[0].Err) {
					t.Errorf("got %v", out[0].Err)
				}
				e := enriched(t, out[1])
				if !slices.Equal(e.Degraded, []string{"features: unavailable"}) || e.RuleSet != pinned {
					t.Errorf("got %+v", e)
				}
				if v, ok := e.Features["payer.count_5m"]; !ok || v.Known || len(e.Features) != 18 {
					t.Errorf("the features are not unknown: %v", e.Features)
				}
			})
		})
	}
}

func BenchmarkStep(b *testing.B) {
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprint("batch ", size), func(b *testing.B) {
			s := step(store(b, b.TempDir()))
			batch := make([]stage.Message, size)
			for n := 0; b.Loop(); n++ {
				b.StopTimer()
				for i := range batch {
					k := n*size + i
					in := submitted(fmt.Sprint("id-", k), k)
					in.Tx.Payer.CustomerID = fmt.Sprint("p-", k%5000)
					batch[i] = message(b, in, uint64(k+1))
				}
				b.StartTimer()
				for _, r := range s.Handle(context.Background(), batch) {
					if r.Err != nil {
						b.Fatal(r.Err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/event")
		})
	}
}
