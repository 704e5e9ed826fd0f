package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/streams"
)

// lease makes one keeper of several the one that works. It lies in a bucket whose entries vanish [streams.LeaseTime] after they
// were last written, by the broker's clock.
type lease struct {
	js       jetstream.JetStream
	holder   string // the same holder may take it up again at once
	revision uint64 // of the entry that this process wrote last; 0: it holds none
	renewed  time.Time
}

const (
	leaseKey   = "keeper"
	renewEvery = time.Second
	// leaseTry bounds one renewal: it is over well before the lease is.
	leaseTry = time.Second
)

// hold takes or renews the lease and tells whether this process has it; now only paces the renewals. A round that takes longer
// than the lease may overlap with another keeper's: that costs work and nothing else, since every act of a keeper is guarded. While the broker does not answer nobody has.
func (l *lease) hold(ctx context.Context, now time.Time) (bool, error) {
	if l.revision != 0 && now.Sub(l.renewed) < renewEvery {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTry)
	defer cancel()
	bucket, err := l.js.KeyValue(ctx, streams.LeasesBucket)
	if err != nil {
		return false, err
	}
	if l.revision, err = l.write(ctx, bucket); err != nil || l.revision == 0 {
		return false, err
	}
	l.renewed = now
	return true, nil
}

// write returns 0 where another holds the lease.
func (l *lease) write(ctx context.Context, bucket jetstream.KeyValue) (uint64, error) {
	if l.revision == 0 {
		held, err := bucket.Get(ctx, leaseKey)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
		case err != nil:
			return 0, err
		case string(held.Value()) != l.holder:
			return 0, nil
		default:
			l.revision = held.Revision()
		}
	}
	var err error
	revision := uint64(0)
	if l.revision == 0 {
		revision, err = bucket.Create(ctx, leaseKey, []byte(l.holder))
	} else {
		revision, err = bucket.Update(ctx, leaseKey, []byte(l.holder), l.revision)
	}
	if errors.Is(err, jetstream.ErrKeyExists) { // another was faster, or the broker came back empty
		return 0, nil
	}
	return revision, err
}

// release lets the next keeper work at once.
func (l *lease) release(ctx context.Context) {
	if l.revision == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTry)
	defer cancel()
	if bucket, err := l.js.KeyValue(ctx, streams.LeasesBucket); err == nil {
		_ = bucket.Delete(ctx, leaseKey, jetstream.LastRevision(l.revision)) // else it runs out
	}
}
