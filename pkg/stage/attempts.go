package stage

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Attempts remembers the runs of messages that were delivered before, across crashes of the process that ran them.
type Attempts interface {
	// Get returns how often the message ran and why the last run ended, 0 for none.
	Get(ctx context.Context, key string) (n int, cause string, err error)
	Put(ctx context.Context, key string, n int, cause string) error
	Forget(ctx context.Context, key string) error
}

// KV keeps attempts in a bucket of the broker. It binds at first use and again after an error.
type KV struct {
	JS     jetstream.JetStream
	Bucket string

	mu    sync.Mutex
	bound jetstream.KeyValue
}

// with does something with the bucket.
func (k *KV) with(ctx context.Context, do func(jetstream.KeyValue) error) error {
	kv, err := k.bind(ctx)
	if err != nil {
		return fmt.Errorf("attempts: %w", err)
	}
	err = do(kv)
	if err == nil || errors.Is(err, jetstream.ErrKeyNotFound) {
		return err
	}
	k.mu.Lock()
	k.bound = nil
	k.mu.Unlock()
	return fmt.Errorf("attempts: %w", err)
}

func (k *KV) bind(ctx context.Context) (jetstream.KeyValue, error) {
	k.mu.Lock()
	kv := k.bound
	k.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	kv, err := k.JS.KeyValue(ctx, k.Bucket)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.bound = kv
	k.mu.Unlock()
	return kv, nil
}

// Get reads one record.
func (k *KV) Get(ctx context.Context, key string) (n int, cause string, err error) {
	err = k.with(ctx, func(kv jetstream.KeyValue) error {
		entry, err := kv.Get(ctx, key)
		if err != nil {
			return err
		}
		count, last, _ := strings.Cut(string(entry.Value()), " ")
		if n, err = strconv.Atoi(count); err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
		cause = last
		return nil
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, "", nil
	}
	return n, cause, err
}

// Put writes one record.
func (k *KV) Put(ctx context.Context, key string, n int, cause string) error {
	return k.with(ctx, func(kv jetstream.KeyValue) error {
		_, err := kv.PutString(ctx, key, strconv.Itoa(n)+" "+cause)
		return err
	})
}

// Forget removes one record.
func (k *KV) Forget(ctx context.Context, key string) error {
	return k.with(ctx, func(kv jetstream.KeyValue) error { return kv.Purge(ctx, key) })
}

// AttemptKey names a message's record: "notify/8/1764257756000000000". A machine that lost the end of a stream gives a sequence
// anew, so the time at which the message was stored is part of it.
func AttemptKey(step string, sequence uint64, stored time.Time) string {
	return step + "/" + strconv.FormatUint(sequence, 10) + "/" + strconv.FormatInt(stored.UnixNano(), 10)
}

func (w *work) attemptKey(in input) string { return AttemptKey(w.Spec.Step, in.Sequence, in.Stored) }

func causeOf(last string) string {
	switch last {
	case CausePanic, CauseExhausted:
		return last
	}
	return CauseCrash
}

// recorded and record go on until the bucket answers: a run that is not recorded must not happen.
func (w *work) recorded(ctx context.Context, key string) (n int, cause string, err error) {
	err = w.insist(ctx, func(try context.Context) error {
		n, cause, err = w.Attempts.Get(try, key)
		return err
	})
	return n, cause, err
}

func (w *work) record(ctx context.Context, key string, n int, cause string) error {
	return w.insist(ctx, func(try context.Context) error { return w.Attempts.Put(try, key, n, cause) })
}

// insist repeats do, each try bounded, until it works, ctx ends or the connection is closed, which never comes back.
func (w *work) insist(ctx context.Context, do func(context.Context) error) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		err := do(try)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if w.JS.Conn().IsClosed() {
			return err
		}
		if pause > 500*time.Millisecond {
			w.Log.Warn().Err(err).Msg("the broker does not answer, trying on")
		}
		if err := Sleep(ctx, pause); err != nil {
			return err
		}
	}
}
