package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/stage"
)

// Layout is what differs between installations.
type Layout struct {
	Replicas       int   // 1 on one node, 3 on a cluster
	SubmittedBytes int64 // byte budget of TX_SUBMITTED; the other streams get a multiple (see budget)
}

// DefaultLayout suits one node: about a million transactions in TX_SUBMITTED.
var DefaultLayout = Layout{Replicas: 1, SubmittedBytes: 2 << 30}

const (
	day        = 24 * time.Hour
	duplicates = 2 * time.Minute
)

// budget is each stream's share in units of TX_SUBMITTED's: events grow along the flow, since each holds the one before.
var budget = map[string]int64{Submitted: 1, Enriched: 2, Validated: 2, Scored: 3, Decided: 3}

// Streams returns every stream of the layout. Limits retention and DiscardNew: full means refused at the edge, never dropped.
func (l Layout) Streams() []jetstream.StreamConfig {
	flow := func(name, event string, age time.Duration) jetstream.StreamConfig {
		return jetstream.StreamConfig{Name: name, Subjects: []string{"tx." + event + ".*"}, Retention: jetstream.LimitsPolicy,
			Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage, Replicas: max(1, l.Replicas), MaxAge: age,
			MaxBytes: budget[name] * l.SubmittedBytes, Duplicates: duplicates, AllowAtomicPublish: true, AllowDirect: true}
	}
	all := []jetstream.StreamConfig{
		flow(Submitted, EventSubmitted, 30*day), flow(Enriched, EventEnriched, 2*day), flow(Validated, EventValidated, 2*day),
		flow(Scored, EventScored, 2*day), flow(Decided, EventDecided, 30*day), flow(Labeled, "labeled", 400*day),
		flow(DeadLetters, "", 90*day), flow(Control, "", 0),
	}
	all[5].MaxBytes = -1
	all[6].Subjects, all[6].MaxBytes = []string{"dlq.>"}, -1
	all[7].Subjects, all[7].MaxBytes, all[7].MaxMsgsPerSubject, all[7].Discard = []string{"control.>"}, -1, 1, jetstream.DiscardOld
	return all
}

// Consumers returns the durable of every step. Attempts are counted in code, so the broker redelivers without end.
func (l Layout) Consumers() map[string]jetstream.ConsumerConfig {
	out := map[string]jetstream.ConsumerConfig{}
	for _, s := range Steps {
		out[s.Stream] = jetstream.ConsumerConfig{Durable: s.Durable, Name: s.Durable, AckPolicy: jetstream.AckExplicitPolicy,
			AckWait: s.AckWait, MaxDeliver: -1, MaxAckPending: s.MaxAckPending, DeliverPolicy: jetstream.DeliverAllPolicy,
			ReplayPolicy: jetstream.ReplayInstantPolicy, MaxWaiting: 512, Replicas: 0}
	}
	return out
}

// Attempts is the bucket of attempts; records outlive any message's retries and go by themselves.
func (l Layout) Attempts() jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{Bucket: AttemptsBucket, TTL: time.Hour, Storage: jetstream.FileStorage, Replicas: max(1, l.Replicas)}
}

// Leases is the bucket of leases.
func (l Layout) Leases() jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{Bucket: LeasesBucket, TTL: LeaseTime, Storage: jetstream.FileStorage, Replicas: max(1, l.Replicas)}
}

// Ensure creates what is missing and updates what differs; it does nothing where all stands. It is safe to call at any time
// and tells what it changed. What the broker refuses keeps it from nothing else: the error names all of that.
func Ensure(ctx context.Context, js jetstream.JetStream, l Layout) (done []string, err error) {
	return apply(ctx, js, l, func(Change) bool { return true })
}

// Make only creates what is missing. That anybody may do at any time, while of two that have different layouts only one may
// update, or each would undo what the other did.
func Make(ctx context.Context, js jetstream.JetStream, l Layout) (done []string, err error) {
	return apply(ctx, js, l, func(c Change) bool { return c.makes })
}

func apply(ctx context.Context, js jetstream.JetStream, l Layout, wanted func(Change) bool) (done []string, err error) {
	changes, err := Diff(ctx, js, l)
	if err != nil && !Refused(err) {
		return nil, err
	}
	refused := []error{err}
	for _, c := range changes {
		if !wanted(c) {
			continue
		}
		switch err := c.apply(ctx); {
		case err == nil:
			done = append(done, c.Text)
		case Refused(err):
			refused = append(refused, fmt.Errorf("%s: %w", c.Text, err))
		default:
			return done, errors.Join(append(refused, fmt.Errorf("%s: %w", c.Text, err))...)
		}
	}
	return done, errors.Join(refused...)
}

// Refused tells whether an error is the broker's own word, which waiting does not change: no peers for the replicas, no storage for
// the bytes, a consumer of another kind. Anything else is a broker that is away.
func Refused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) || errors.Is(err, jetstream.ErrNotPullConsumer)
}

// Full tells whether an error says that a stream, or the server, has no room.
func Full(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == 10077 || api.ErrorCode == 10047) // its byte budget; the server's storage
}

// Change is one difference between what stands and what the layout wants.
type Change struct {
	Text  string // "create stream TX_SUBMITTED"
	makes bool   // what is not there, and is no update
	apply func(context.Context) error
}

// Diff returns what Ensure would do, in order. A consumer that stands in the way of one is an error that is [Refused], beside what
// can be done all the same.
func Diff(ctx context.Context, js jetstream.JetStream, l Layout) (out []Change, refused error) {
	for _, want := range l.Streams() {
		change, err := diffStream(ctx, js, want)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", want.Name, err)
		}
		out = append(out, change...)
	}
	for _, s := range Steps {
		change, err := diffConsumer(ctx, js, s, l.Consumers()[s.Stream])
		switch {
		case Refused(err):
			refused = errors.Join(refused, fmt.Errorf("consumer %s: %w", s.Durable, err))
		case err != nil:
			return nil, fmt.Errorf("consumer %s: %w", s.Durable, err)
		}
		out = append(out, change...)
	}
	for _, want := range []jetstream.KeyValueConfig{l.Attempts(), l.Leases()} {
		change, err := diffBucket(ctx, js, want)
		if err != nil {
			return nil, fmt.Errorf("bucket %s: %w", want.Bucket, err)
		}
		out = append(out, change...)
	}
	return out, refused
}

// unless drops the error of one that was slower than another.
func unless(err, exists error) error {
	if errors.Is(err, exists) {
		return nil
	}
	return err
}

func diffBucket(ctx context.Context, js jetstream.JetStream, want jetstream.KeyValueConfig) ([]Change, error) {
	create := func(ctx context.Context) error {
		_, err := js.CreateKeyValue(ctx, want)
		return unless(err, jetstream.ErrBucketExists)
	}
	update := func(ctx context.Context) error {
		_, err := js.UpdateKeyValue(ctx, want)
		return err
	}
	bucket, err := js.Stream(ctx, "KV_"+want.Bucket)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return []Change{{"create bucket " + want.Bucket, true, create}}, nil
	}
	if err != nil {
		return nil, err
	}
	if have := bucket.CachedInfo().Config; have.MaxAge != want.TTL || have.Replicas != want.Replicas {
		return []Change{{"update bucket " + want.Bucket, false, update}}, nil
	}
	return nil, nil
}

func diffStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) ([]Change, error) {
	create := func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, want)
		return unless(err, jetstream.ErrStreamNameAlreadyInUse)
	}
	update := func(ctx context.Context) error {
		_, err := js.UpdateStream(ctx, want)
		return err
	}
	stream, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return []Change{{"create stream " + want.Name, true, create}}, nil
	}
	if err != nil {
		return nil, err
	}
	if have := stream.CachedInfo().Config; !sameStream(have, want) {
		return []Change{{"update stream " + want.Name, false, update}}, nil
	}
	return nil, nil
}

// sameStream compares what the layout decides and leaves alone what the server fills in.
func sameStream(a, b jetstream.StreamConfig) bool {
	return slices.Equal(a.Subjects, b.Subjects) && a.Retention == b.Retention && a.Discard == b.Discard && a.Storage == b.Storage &&
		a.Replicas == b.Replicas && a.MaxAge == b.MaxAge && a.MaxBytes == b.MaxBytes && a.Duplicates == b.Duplicates &&
		a.AllowAtomicPublish == b.AllowAtomicPublish && a.AllowDirect == b.AllowDirect &&
		(a.MaxMsgsPerSubject == b.MaxMsgsPerSubject || a.MaxMsgsPerSubject <= 0 && b.MaxMsgsPerSubject <= 0)
}

// again is from how long ago on a consumer is made that is missing on a stream with messages: what is older and undecided is the
// sweep's, and all that is decided need not be gone through once more.
const again = 5 * time.Minute

func diffConsumer(ctx context.Context, js jetstream.JetStream, spec stage.Spec, want jetstream.ConsumerConfig) ([]Change, error) {
	create := func(ctx context.Context) error {
		stream, err := js.Stream(ctx, spec.Stream)
		if err != nil {
			return err
		}
		// Of webhooks nobody but the stream knows what is still owed; those that were owed before are no new ones.
		if info := stream.CachedInfo(); info.State.Msgs > 0 && spec.Step != Notify.Step {
			start := info.TimeStamp.Add(-again)
			want.DeliverPolicy, want.OptStartTime = jetstream.DeliverByStartTimePolicy, &start
		}
		_, err = js.CreateConsumer(ctx, spec.Stream, want)
		return unless(err, jetstream.ErrConsumerExists)
	}
	consumer, err := js.Consumer(ctx, spec.Stream, want.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return []Change{{"create consumer " + want.Durable, true, create}}, nil
	}
	if err != nil {
		return nil, err
	}
	have := consumer.CachedInfo().Config
	if sameConsumer(have, want) {
		return nil, nil
	}
	// What no update can change stays.
	want.DeliverPolicy, want.OptStartSeq, want.OptStartTime, want.ReplayPolicy, want.MaxWaiting = have.DeliverPolicy, have.OptStartSeq, have.OptStartTime, have.ReplayPolicy, have.MaxWaiting
	update := func(ctx context.Context) error {
		_, err := js.UpdateConsumer(ctx, spec.Stream, want)
		return err
	}
	return []Change{{"update consumer " + want.Durable, false, update}}, nil
}

// sameConsumer compares what decides which messages come, when, and how often.
func sameConsumer(a, b jetstream.ConsumerConfig) bool {
	return a.AckPolicy == b.AckPolicy && a.AckWait == b.AckWait && a.MaxDeliver == b.MaxDeliver && a.MaxAckPending == b.MaxAckPending &&
		a.FilterSubject == b.FilterSubject && slices.Equal(a.FilterSubjects, b.FilterSubjects) && a.HeadersOnly == b.HeadersOnly &&
		slices.Equal(a.BackOff, b.BackOff) && a.InactiveThreshold == b.InactiveThreshold && a.MaxRequestBatch == b.MaxRequestBatch &&
		a.MaxRequestExpires == b.MaxRequestExpires && a.MaxRequestMaxBytes == b.MaxRequestMaxBytes && a.RateLimit == b.RateLimit
}
