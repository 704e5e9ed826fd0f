package sim_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/services/store"
	"crivo/streams"
	"crivo/streams/event"
)

// lastWrite is how long after its deadline a decision may come to stand that says it is in time: persist gives the arbiter half a
// second at least, and two clocks may differ by some milliseconds.
const lastWrite = 520 * time.Millisecond

// always is beyond every deadline.
const always = 1000 * time.Hour

// unsettled tells what is still to be done, nothing at last: every claim is decided and every decision told, whoever heard of it,
// and nothing is pending in a stream.
func (w *world) unsettled() string {
	ctx, far := context.Background(), time.Now().Add(always)
	if open, _ := w.truth.Overdue(ctx, far, 1000); len(open) > 0 {
		return fmt.Sprintf("%d undecided, %s in run %d among them", len(open), open[0].ID, open[0].Run)
	}
	if silent, _ := w.truth.Unannounced(ctx, far, 1000); len(silent) > 0 {
		return fmt.Sprintf("%d not announced, %s among them", len(silent), silent[0].ID)
	}
	if n := w.sky.writes.Load(); n > 0 {
		return fmt.Sprintf("%d writes under way in the store", n)
	}
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	for _, spec := range streams.Steps {
		s := w.broker.streams[spec.Stream]
		if s == nil || s.consumers[spec.Durable] == nil {
			return "no consumer " + spec.Durable
		}
		if c := s.consumers[spec.Durable]; len(c.pending) > 0 || c.floor() < s.last {
			return fmt.Sprintf("%s has %d pending and is at %d of %d", spec.Durable, len(c.pending), c.floor(), s.last)
		}
	}
	if w.broker.wiped {
		return w.untold()
	}
	return ""
}

// untold names a decision that must be announced again and is not yet. It needs the broker's lock.
func (w *world) untold() string {
	told := map[string]bool{}
	for _, m := range w.broker.streams[streams.Decided].messages {
		told[headerOf(m.header, streams.HeaderID)] = true
	}
	w.truth.mu.Lock()
	defer w.truth.mu.Unlock()
	for key := range w.truth.held {
		if !told[key.ID] && !w.broker.lost[key.ID] {
			return key.ID + " is not announced again"
		}
	}
	return ""
}

// settle waits until nothing is left to do.
func (w *world) settle(most time.Duration) {
	for give := time.Now().Add(most); ; time.Sleep(500 * time.Millisecond) {
		left := w.unsettled()
		if left == "" {
			return
		}
		if time.Now().After(give) {
			w.dump()
			w.fault("I1, I6: after %s: %s", most, left)
			return
		}
	}
}

// report is what runs came to. Lateness is counted, and not judged: I4 is the guard's, and holds while the store answers.
type report struct {
	Accepted, Decided, Late, Guarded, Buried, Letters int

	Innocent  int // buried without being poison
	Unclaimed int // attempted, and nothing of it is known
	Silenced  int // decided, and the broker lost the only word of it
}

func (r *report) add(o report) {
	r.Accepted += o.Accepted
	r.Decided += o.Decided
	r.Late += o.Late
	r.Guarded += o.Guarded
	r.Buried += o.Buried
	r.Letters += o.Letters
	r.Innocent += o.Innocent
	r.Unclaimed += o.Unclaimed
	r.Silenced += o.Silenced
}

// judge compares what clients were told with the store, the streams and the webhooks owed.
func (w *world) judge() report {
	var r report
	decided := w.decisions(&r)
	w.compareStreams(decided, &r)
	w.compareRows(decided)
	w.compareAnswers(decided, &r)
	for _, s := range w.broker.strange {
		w.fault("not simulated: %s", s)
	}
	return r
}

// decisions reads the store: I2, one decision ever; I3, only of what was attempted; I5, the one that its inputs give.
func (w *world) decisions(r *report) map[store.Key]string {
	attempted := map[string]bool{}
	for _, a := range w.clients.answers() {
		attempted[a.id] = true
	}
	out := map[store.Key]string{}
	for key, held := range w.truth.decisions {
		if len(held) > 1 {
			w.fault("I2: the store held %d decisions of %s", len(held), key.ID)
		}
		if !attempted[key.ID] {
			w.fault("I3: %s is decided and nobody sent it", key.ID)
		}
		entry, err := w.truth.Get(context.Background(), key)
		if err != nil || !entry.Decided() {
			w.fault("I2: the decision of %s is gone: %v", key.ID, err)
			continue
		}
		out[key] = string(entry.Event)
		w.recompute(key, entry.Event, r)
	}
	r.Decided = len(out)
	for key := range w.truth.claimed {
		if out[key] == "" {
			w.fault("I1: %s is claimed and not decided", key.ID)
		}
	}
	return out
}

func (w *world) recompute(key store.Key, stored []byte, r *report) {
	d, err := event.Decode[event.Decided](stored)
	if err != nil {
		w.fault("I5: the decision of %s cannot be read: %v", key.ID, err)
		return
	}
	if d.DecidedAt.Sub(d.AcceptedAt.Time) > 2*time.Second {
		r.Late++
	}
	if beyond := w.truth.held[key].Sub(d.Deadline.Time); beyond > lastWrite && !d.Late && !w.truth.behind[key] {
		w.fault("I4: %s, by %s in run %d, came to stand %s past its deadline and is not late", key.ID, d.By, d.Run, beyond)
	}
	switch d.By {
	case event.ByGuard:
		r.Guarded++
	case event.ByBurial:
		r.Buried++
		if !strings.HasSuffix(key.ID, poisonsEnrich) && !strings.HasSuffix(key.ID, poisonsPersist) {
			r.Innocent++
			w.convict(key.ID, d.Verdict)
		}
		return // there is nothing to compute
	}
	again, err := w.scoring.Handle(context.Background(), d.Validated)
	if was, is := encoded(d.Verdict), encoded(again.Verdict); err != nil || was != is {
		w.fault("I5: %s is decided otherwise from its inputs: %v\n%s\n%s", key.ID, err, was, is)
	}
}

// convict judges who buried a transaction that is no poison. A process of that step must have died of it as often as a message may
// run, or a record of a run that ended well was not forgotten because the broker was not reached.
func (w *world) convict(id string, v txn.Verdict) {
	_, why, _ := strings.Cut(v.Reasons[0].Text, "(") // could not be processed (step: cause), …
	step, why, _ := strings.Cut(why, ": ")
	cause, _, _ := strings.Cut(why, ")")
	w.mu.Lock()
	excuses := w.deaths[step]
	w.mu.Unlock()
	w.broker.mu.Lock()
	excuses += w.broker.unreached
	w.broker.mu.Unlock()
	if cause != stage.CauseCrash || excuses < stage.MaxAttempts {
		w.fault("I3: %s is no poison and was buried by %s: %s", id, step, cause)
	}
}

func encoded(v txn.Verdict) string {
	data, err := json.Marshal(&v, json.Deterministic(true))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// compareStreams: I2, what is announced is what is stored, and all of it is; I3, what was buried is decided.
func (w *world) compareStreams(decided map[store.Key]string, r *report) {
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	announced := map[store.Key]bool{}
	for _, m := range w.broker.streams[streams.Decided].messages {
		key, err := keyOf(m)
		if err != nil {
			w.fault("I2: a decision without identity: %v", err)
			continue
		}
		announced[key] = true
		if string(m.data) != decided[key] {
			w.fault("I2: %s is announced otherwise than it is stored", key.ID)
		}
	}
	for key := range decided {
		switch {
		case announced[key]:
		case w.broker.lost[key.ID]:
			r.Silenced++
		default:
			w.fault("I2: %s is decided and not announced", key.ID)
		}
	}
	for _, m := range w.broker.streams[streams.DeadLetters].messages {
		r.Letters++
		if key, err := keyOf(m); err != nil || decided[key] == "" {
			w.fault("I3: a dead letter of %s, which is not decided: %v", key.ID, err)
		}
	}
}

func keyOf(m *stored) (store.Key, error) {
	h, err := nats.DecodeHeadersMsg(m.header)
	if err != nil {
		return store.Key{}, err
	}
	i, err := streams.ReadIdent(h)
	return store.Key{Tenant: i.Tenant, ID: i.ID}, err
}

// compareRows: I8, one webhook is owed of each decision, and it tells that one.
func (w *world) compareRows(decided map[store.Key]string) {
	rows, _, err := w.rows.List(context.Background(), store.DeliveryQuery{Tenant: tenant, Limit: 1000})
	if err != nil {
		w.fault("deliveries: %v", err)
	}
	owed := map[store.Key]int{}
	for _, row := range rows {
		key := store.Key{Tenant: row.Tenant, ID: row.TransactionID}
		owed[key]++
		d, err := event.Decode[event.Decided]([]byte(decided[key]))
		if want := thin(d); err != nil || string(row.Body) != want {
			w.fault("I8: the webhook of %s tells %s, and not %s", key.ID, row.Body, want)
		}
	}
	for key := range decided {
		if n := owed[key]; n > 1 || n == 0 && !w.broker.lost[key.ID] {
			w.fault("I8: %d webhooks are owed of %s", n, key.ID)
		}
	}
}

// thin is what a webhook tells of a decision.
func thin(d event.Decided) string {
	type data struct {
		ID       string   `json:"id"`
		Decision string   `json:"decision"`
		Score    int      `json:"score"`
		RiskBand string   `json:"risk_band"`
		Reasons  []string `json:"reasons"`
	}
	public := d.Public()
	told := data{ID: d.ID, Decision: public.Verdict.Decision, Score: public.Score, RiskBand: public.RiskBand}
	for _, r := range public.Reasons {
		told.Reasons = append(told.Reasons, r.Code)
	}
	out, err := json.Marshal(&struct {
		Type      string   `json:"type"`
		Timestamp txn.Time `json:"timestamp"`
		Data      data     `json:"data"`
	}{"transaction.decided", d.DecidedAt, told}, json.Deterministic(true))
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// compareAnswers: I10. Who was told a decision was told the stored one; two bodies are never both accepted; whatever anybody
// sends again now gets the first result.
func (w *world) compareAnswers(decided map[store.Key]string, r *report) {
	first := map[store.Key]int{} // which body was accepted
	sent := map[answer]bool{}
	for _, a := range w.clients.answers() {
		key := store.Key{Tenant: tenant, ID: a.id}
		sent[answer{id: a.id, variant: a.variant}] = true
		switch a.status {
		case 0, http.StatusServiceUnavailable:
		case http.StatusOK, http.StatusAccepted:
			if v, ok := first[key]; ok && v != a.variant {
				w.fault("I10: two bodies were accepted as %s", a.id)
			}
			first[key] = a.variant
			if decided[key] == "" {
				w.fault("I1: %s is accepted and not decided", a.id)
			} else if a.status == http.StatusOK {
				w.tells(a, decided[key])
			}
		case http.StatusConflict:
			if w.truth.claimed[key].IsZero() {
				w.fault("I10: %s is in conflict with nothing", a.id)
			}
		default:
			w.fault("I10: %s was answered %d %s", a.id, a.status, a.body)
		}
	}
	r.Accepted = len(first)
	winners := map[string]int{}
	for _, s := range slices.SortedFunc(maps.Keys(sent), func(x, y answer) int { return strings.Compare(x.id, y.id)*2 + x.variant - y.variant }) {
		key := store.Key{Tenant: tenant, ID: s.id}
		if w.truth.claimed[key].IsZero() {
			r.Unclaimed++
			continue
		}
		a := w.clients.insist(s.id, s.variant)
		switch v, accepted := first[key]; {
		case a.status == http.StatusOK:
			winners[s.id]++
			w.tells(a, decided[key])
			if !a.replay || accepted && v != s.variant {
				w.fault("I10: body %d of %s gets the decision of another", s.variant, s.id)
			}
		case a.status != http.StatusConflict || accepted && v == s.variant:
			w.fault("I10: %s sent again is answered %d %s", s.id, a.status, a.body)
		}
		if winners[s.id] > 1 {
			w.fault("I10: two bodies are %s", s.id)
		}
	}
}

// tells checks that an answer shows the stored decision.
func (w *world) tells(a answer, stored string) {
	d, err := event.Decode[event.Decided]([]byte(stored))
	if err != nil {
		return // said elsewhere
	}
	public := d.Public()
	want, err := json.Marshal(&public, json.Deterministic(true))
	if err != nil || strings.TrimSpace(a.body) != string(want) {
		w.fault("I10: %s was told %s, stored is %s", a.id, a.body, want)
	}
}

// inTime: I4, no decision took longer than the tenant's deadline, by the world's own clock: a repeat renews what is stamped. Since is
// when each was promised: when a client first heard of its acceptance, or when it was claimed, where an edge lives to look after it.
func (w *world) inTime(since map[store.Key]time.Time) {
	for key, promised := range since {
		if held := w.truth.held[key]; !held.IsZero() && held.Sub(promised) > 2*time.Second {
			w.fault("I4: %s took %s", key.ID, held.Sub(promised))
		}
	}
}

// dump tells where every consumer is, for who watches a run that does not come to rest.
func (w *world) dump() {
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	for _, s := range w.broker.sorted() {
		for _, c := range s.ordered() {
			w.tracef("%s: next %d of %d, floor %d, %d pending, %d waiting", c.name(), c.next, s.last, c.floor(), len(c.pending), len(c.waiting))
			for _, p := range c.waiting {
				w.tracef("  %s wants %d, %s left, heard %v", p.inbox, p.left, time.Until(p.expires), w.broker.listens(p.inbox))
			}
		}
	}
}
