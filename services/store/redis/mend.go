package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crivo/pkg/stage"
	"crivo/services/enrich"
)

// The marker of a bucket lies on the same server as the bucket's entities, so it is lost with them. Its fields:
//
//	epoch    the same in all buckets of a complete store; a bucket without it, or with another, is unknown
//	created  the stream that floor counts in
//	floor    every event of the stream up to it has been applied
//	since    what happened before may be lacking, because the stream no longer held it at the last rebuild
//	writes   how often the bucket was written
//	building who rebuilds it
//
// Covered: a bucket that is lost or evicted, since its epoch is gone; a server that comes back without its last moments (an
// append-only file synced each second, a replica that lagged), since what is lost is always the end of what was written, so
// that a floor is never ahead of the events, and since a process sees another run of the server, or writes that count back; calls that failed or timed out,
// which the process owes; a process that died owing, by the margin that every start replays; a server that a process sees evict,
// which disowns all buckets.
//
// Not covered: a process that dies owing more than the margin while others go on and note the floor; a lost end that reaches
// below the margin; what is owed of a stream that was deleted; a policy that evicts and is gone again before anybody looked.
type marker struct {
	epoch   string
	created int64
	floor   uint64
	writes  uint64
}

const (
	// margin is how many events below the floor are replayed at a start and after a lost end: processes note the floor four
	// times a second each, and may be some seconds apart from each other under load.
	margin = 4096
	// leaseTime is how long a rebuild outlives its process; it is renewed every third of it.
	leaseTime = 10 * time.Second
	// mendTime is the patience of one call beside the flow.
	mendTime = time.Second
)

// Mend replays what this process knows to be missing, takes up the markers' epoch, and rebuilds the store where they do not
// agree, unless another process does: [enrich.ErrElsewhere].
func (f *Features) Mend(ctx context.Context, s enrich.Source, replay enrich.Replay) error {
	all, falls, err := f.look(ctx)
	if err != nil {
		return err
	}
	after, whole := f.missing(all, s)
	if !whole {
		return f.rebuild(ctx, all, s, replay)
	}
	if after < s.Delivered {
		if err := replay(ctx, after); err != nil {
			return err
		}
	}
	f.settle(all[0].epoch, s, falls, after)
	return f.note(ctx, all, s.Acked)
}

// check names the servers' processes, and asks for the policy once more where they are others than before: not every report tells
// it. What was evicted leaves no trace, so all buckets are disowned, as soon as that can be written, and the way back is a rebuild.
func (f *Features) check(ctx context.Context) (runs string, err error) {
	runs, err = f.Client.runs(ctx)
	f.mu.Lock()
	checked := f.checked
	f.mu.Unlock()
	if err == nil && runs != checked {
		err = f.Check(ctx)
	}
	f.mu.Lock()
	if err == nil {
		f.checked = runs
	}
	f.evicted = f.evicted || errors.Is(err, ErrEvicts)
	evicted := f.evicted
	f.mu.Unlock()
	if !evicted {
		return runs, err
	}
	if lost := f.disown(ctx); lost != nil {
		return "", errors.Join(err, lost)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.evicted = false
	return runs, err
}

// disown takes all markers' epoch, so that no process knows a history, and the token of a rebuild that is under way.
func (f *Features) disown(ctx context.Context) error {
	return f.pipelined(ctx, func(pipe goredis.Pipeliner, b int) { pipe.HDel(ctx, f.marker(b), "epoch", "building") })
}

// look checks the servers and reads all markers, and tells how many falls were found up to then.
func (f *Features) look(ctx context.Context) (all [buckets]marker, falls int, err error) {
	runs, err := f.check(ctx)
	if err != nil {
		return all, 0, fmt.Errorf("features: %w", err)
	}
	before := f.counted()
	answers := make([]*goredis.SliceCmd, buckets)
	err = f.pipelined(ctx, func(pipe goredis.Pipeliner, b int) {
		answers[b] = pipe.HMGet(ctx, f.marker(b), "epoch", "created", "floor", "writes")
	})
	if err != nil {
		return all, 0, fmt.Errorf("features: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.runs != "" && f.runs != runs {
		f.falls++
		f.torn = f.falls
	}
	f.runs = runs
	for b, a := range answers {
		v := a.Val()
		all[b] = marker{text(v[0]), number(v[1]), uint64(number(v[2])), uint64(number(v[3]))}
		f.seen(b, all[b].writes, all[b].epoch, before)
	}
	return all, f.falls, nil
}

// pipelined sends one command per bucket in one round trip.
func (f *Features) pipelined(ctx context.Context, add func(pipe goredis.Pipeliner, bucket int)) error {
	ctx, cancel := context.WithTimeout(ctx, mendTime)
	defer cancel()
	return f.call(ctx, func(ctx context.Context) error {
		_, err := f.rdb.Pipelined(ctx, func(pipe goredis.Pipeliner) error {
			for b := range buckets {
				add(pipe, b)
			}
			return nil
		})
		return err
	})
}

// missing returns the sequence after which the delivered events must be replayed, and whether that is enough.
func (f *Features) missing(all [buckets]marker, s enrich.Source) (after uint64, whole bool) {
	floor := all[0].floor
	for _, m := range all {
		if m.epoch == "" || m.epoch != all[0].epoch || m.created != s.Created.UnixNano() {
			return 0, false
		}
		floor = min(floor, m.floor)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	after, needed := s.Delivered, s.Delivered
	if f.epoch == "" || f.torn > f.mended {
		after, needed = min(after, floor-min(floor, margin)), min(needed, floor)
	}
	if f.owed.From != 0 {
		after, needed = min(after, f.owed.From-1), min(needed, f.owed.From-1)
	}
	return after, needed == s.Delivered || needed+1 >= s.First
}

// settle trusts an epoch once falls and all events after a sequence, up to the last delivered, are made up for. What is owed of
// another stream is forgiven: its numbers mean nothing any more.
func (f *Features) settle(epoch string, s enrich.Source, falls int, after uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch, f.mended = epoch, falls
	switch {
	case !f.created.IsZero() && !f.created.Equal(s.Created):
		f.owed = span{}
	case f.owed.From <= after:
	case f.owed.Through <= s.Delivered:
		f.owed = span{}
	default:
		f.owed.From = max(f.owed.From, s.Delivered+1)
	}
	f.created = s.Created
}

// note moves the floor up to what has been acknowledged: whoever acknowledged it had applied it, or owes it.
func (f *Features) note(ctx context.Context, all [buckets]marker, acked uint64) error {
	if !slices.ContainsFunc(all[:], func(m marker) bool { return m.floor < acked }) {
		return nil
	}
	return f.pipelined(ctx, func(pipe goredis.Pipeliner, b int) { pipe.HSet(ctx, f.marker(b), "floor", max(acked, all[b].floor)) })
}

// errAgain is returned when the store lost something while it was being rebuilt.
var errAgain = errors.New("features: a rebuild was disturbed and begins again")

// rebuild replays all that the stream holds and gives the markers a new epoch, which is the token of this rebuild. A bucket
// that is lost meanwhile, or taken over by another process, no longer has the token, and then nothing is complete.
func (f *Features) rebuild(ctx context.Context, all [buckets]marker, s enrich.Source, replay enrich.Replay) error {
	token := rand.Text()
	held, end, err := f.hold(ctx, token)
	if err != nil {
		return err
	}
	defer end()
	if err := f.pipelined(held, func(pipe goredis.Pipeliner, b int) { pipe.HSet(held, f.marker(b), "building", token) }); err != nil {
		return err
	}
	_, falls, err := f.look(held)
	if err != nil {
		return err
	}
	keeps := f.keeps(all, s)
	if err := replay(held, 0); err != nil {
		if held.Err() != nil && ctx.Err() == nil {
			return errAgain
		}
		return err
	}
	if _, now, err := f.look(held); err != nil || now != falls {
		return errors.Join(errAgain, err)
	}
	if err := f.finish(held, token, s, keeps); err != nil {
		return err
	}
	f.settle(token, s, falls, 0)
	return nil
}

// keeps tells which buckets lack nothing that the stream no longer holds: only the others begin at its oldest message.
func (f *Features) keeps(all [buckets]marker, s enrich.Source) (out [buckets]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for b, m := range all {
		if m.created != s.Created.UnixNano() {
			m.floor = 0
		}
		out[b] = m.epoch != "" && m.floor+1 >= s.First && (f.owed.From == 0 || f.owed.From >= s.First)
	}
	return out
}

// The scripts compare a token first, since another process may have come in between.
const (
	finishSource = `
if redis.call('HGET', KEYS[1], 'building') ~= ARGV[1] then return 0 end
if ARGV[2] ~= 'keep' or not redis.call('HGET', KEYS[1], 'epoch') then
  redis.call('HDEL', KEYS[1], 'since')
  if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'since', ARGV[3]) end
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'created', ARGV[4], 'floor', ARGV[5])
redis.call('HDEL', KEYS[1], 'building')
return 1`
	renewSource   = `if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end return redis.call('PEXPIRE', KEYS[1], ARGV[2])`
	releaseSource = `if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end return redis.call('DEL', KEYS[1])`
)

func (f *Features) finish(ctx context.Context, token string, s enrich.Source, keeps [buckets]bool) error {
	since := ""
	if !s.Since.IsZero() {
		since = strconv.FormatInt(s.Since.UnixMilli(), 10)
	}
	answers := make([]*goredis.Cmd, buckets)
	err := f.pipelined(ctx, func(pipe goredis.Pipeliner, b int) {
		keep := ""
		if keeps[b] {
			keep = "keep"
		}
		answers[b] = pipe.Eval(ctx, finishSource, []string{f.marker(b)}, token, keep, since, s.Created.UnixNano(), s.Delivered)
	})
	if err != nil {
		return fmt.Errorf("features: %w", err)
	}
	for _, a := range answers {
		if number(a.Val()) != 1 {
			return errAgain
		}
	}
	return nil
}

// hold takes the lease of rebuilds until end is called; held is cancelled when it is lost.
func (f *Features) hold(ctx context.Context, token string) (held context.Context, end func(), err error) {
	lease, won := f.prefix+"crivo:features/lease", false
	err = f.call(ctx, func(ctx context.Context) error {
		won, err = f.rdb.SetNX(ctx, lease, token, leaseTime).Result()
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("features: %w", err)
	}
	if !won {
		return nil, nil, enrich.ErrElsewhere
	}
	held, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for stage.Sleep(held, leaseTime/3) == nil {
			left, err := f.rdb.Eval(held, renewSource, []string{lease}, token, leaseTime.Milliseconds()).Int()
			if err == nil && left == 0 {
				stop()
			}
		}
	}()
	return held, func() {
		stop()
		<-done
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mendTime)
		defer cancel()
		_ = f.rdb.Eval(ctx, releaseSource, []string{lease}, token).Err() // else it runs out
	}, nil
}
