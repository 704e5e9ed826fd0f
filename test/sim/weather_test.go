package sim_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"crivo/streams"
)

// weather is what a seed has in store: which faults are possible, and what happens when. Each run has some kinds of faults and
// lacks others, since all of them at once would hide what one alone brings about.
type weather struct {
	odds   odds
	events []happening
}

type happening struct {
	at   time.Duration
	what string
	do   func()
}

// storm is how long faults happen.
const storm = 5 * time.Second

// forecast makes a seed's weather. A fair one spares the store and the edges, so that the guard can keep every deadline.
func (w *world) forecast(fair bool) weather {
	r := w.dice.about("weather")
	var out weather
	chance := func(most float64) float64 {
		if r.IntN(2) == 0 {
			return 0
		}
		return most * r.Float64()
	}
	out.odds = odds{slow: chance(0.05), lost: chance(0.1), unheard: chance(0.1), refused: chance(0.1), ackLost: chance(0.1), twice: chance(0.2),
		shuffled: chance(0.2), crash: chance(0.03), storeFails: chance(0.1), storeHangs: chance(0.1), storeCrash: chance(0.05), featureFails: chance(0.2)}
	victims := w.roles
	if fair {
		out.odds.crash, out.odds.storeFails, out.odds.storeHangs, out.odds.storeCrash = 0, 0, 0, 0
		victims = slices.DeleteFunc(slices.Clone(w.roles), func(role string) bool { return service(role) == "edge" })
	}
	some := func(most int, what string, do func(r *rand.Rand)) {
		if r.IntN(2) == 0 {
			return
		}
		for range 1 + r.IntN(most) {
			own := rand.New(rand.NewPCG(r.Uint64(), 0))
			out.events = append(out.events, happening{time.Duration(r.Int64N(int64(storm))), what, func() { do(own) }})
		}
	}
	length := func(r *rand.Rand, most time.Duration) time.Duration {
		return 100*time.Millisecond + time.Duration(r.Int64N(int64(most)))
	}
	some(5, "a process is killed", func(r *rand.Rand) { w.each(victims[r.IntN(len(victims))], w.kill) })
	some(2, "a process is told to end", func(r *rand.Rand) { w.each(victims[r.IntN(len(victims))], w.tell) })
	some(3, "a link is cut", func(r *rand.Rand) { w.each(w.roles[r.IntN(len(w.roles))], w.broker.drop) })
	some(3, "a link hangs", func(r *rand.Rand) {
		w.each(w.roles[r.IntN(len(w.roles))], func(name string) { w.broker.freeze(name, length(r, 3*time.Second)) })
	})
	some(4, "a stream loses its leader", func(r *rand.Rand) {
		spec := streams.Steps[r.IntN(len(streams.Steps))]
		w.broker.lead(spec.Stream, length(r, 4*time.Second), r.IntN(2) == 0)
	})
	some(2, "the broker is killed", func(r *rand.Rand) { w.broker.restart(length(r, 3*time.Second), false) })
	if r.IntN(2) == 0 {
		some(2, "the broker's machine is reset", func(r *rand.Rand) {
			w.broker.restart(length(r, 3*time.Second), true)
		})
	}
	if fair {
		return out.inOrder()
	}
	some(2, "the store is away", func(r *rand.Rand) { w.sky.set(length(r, 3*time.Second), r.IntN(2) == 0) })
	if r.IntN(2) == 0 {
		some(2, "power fails", func(r *rand.Rand) {
			w.broker.restart(length(r, time.Second), true)
			for _, role := range w.roles {
				w.each(role, w.kill)
			}
		})
	}
	if r.IntN(8) == 0 {
		some(1, "the broker loses its disk", func(r *rand.Rand) {
			w.broker.wipe(length(r, time.Second), w.tellsAgain())
		})
	}
	some(2, "a machine's clock is set", func(r *rand.Rand) {
		if skew := w.skews[w.roles[r.IntN(len(w.roles))]]; skew != nil {
			skew.Add(r.Int64N(int64(2*time.Hour)) - int64(time.Hour))
		}
	})
	some(2, "a consumer is deleted", func(r *rand.Rand) {
		spec := streams.Steps[r.IntN(len(streams.Steps))]
		w.broker.unmake(spec.Stream, spec.Durable)
	})
	return out.inOrder()
}

// orphaning is weather in which edges die, and nobody else, while all are a little slow.
func (w *world) orphaning() weather {
	r := w.dice.about("orphaning")
	out := weather{odds: odds{slow: 0.05 * r.Float64(), twice: 0.2 * r.Float64(), shuffled: 0.2 * r.Float64(), featureFails: 0.2 * r.Float64(),
		crash: 0.1 * r.Float64(), mortal: "edge"}}
	ends := []func(name string){w.kill, w.kill, w.tell, w.broker.drop, func(name string) { w.broker.freeze(name, time.Second) }}
	for range 2 + r.IntN(8) {
		role, end := []string{"edge-a", "edge-b"}[r.IntN(2)], ends[r.IntN(len(ends))]
		out.events = append(out.events, happening{time.Duration(r.Int64N(int64(storm))), "something befalls " + role, func() { w.each(role, end) }})
	}
	return out.inOrder()
}

func (w weather) inOrder() weather {
	slices.SortFunc(w.events, func(a, b happening) int { return int(a.at - b.at) })
	return w
}

// tellsAgain returns whose decisions the keeper will announce again if the broker loses its disk now: all that stand, once it has
// noted how far it had heard. What is decided later is for persist to tell, which may have lost what it needs for that.
func (w *world) tellsAgain() func(id string) bool {
	_, err := w.registry.State(context.Background(), "keeper/heard")
	return func(id string) bool { return err == nil && w.truth.decided(id) }
}

// each does something to whoever plays a role now.
func (w *world) each(role string, do func(name string)) {
	if p := w.player(role); p != nil {
		do(p.name)
	}
}

// blow makes the weather happen and then ends it.
func (w *world) blow(events []happening) {
	start := time.Now()
	for _, e := range events {
		time.Sleep(time.Until(start.Add(e.at)))
		w.tracef("%s", e.what)
		e.do()
	}
	time.Sleep(time.Until(start.Add(storm)))
	w.tracef("the weather clears up")
	w.broker.heal()
	w.sky.set(0, false)
}

func (s *sky) set(d time.Duration, hangs bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down, s.hangs = time.Time{}, time.Time{}
	if until := time.Now().Add(d); hangs {
		s.hangs = until
	} else {
		s.down = until
	}
}
