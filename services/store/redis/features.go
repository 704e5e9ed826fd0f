package redis

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crivo/services/enrich"
)

// Features keeps entities' histories on a server that several processes write. Entities are spread over buckets; a bucket's
// keys share a slot of the cluster, and its marker says whether it is complete: see [Features.Mend].
//
// An event costs one script per entity: some 10 µs of the server, whatever the entity's history holds. It takes about 190
// bytes of its memory per entity (BenchmarkMemory). An entity that nothing was heard of for two longest windows is forgotten.
type Features struct {
	*Client

	mu      sync.Mutex
	runs    string          // the servers' processes, as last seen
	checked string          // the runs that are known to evict nothing
	evicted bool            // a server was seen to evict, and its buckets are not disowned yet
	epoch   string          // of the markers, once this process may trust them
	writes  [buckets]uint64 // how often each bucket is known to have been written
	falls   int             // how often a server was found started anew, or a bucket written less than was known
	torn    int             // the last fall that leaves a bucket calling itself complete: it may lack its last moments
	mended  int             // falls up to this one are made up for
	owed    span            // events that may not have been applied
	created time.Time       // the stream that they are of
}

// span is a range of sequences, none when From is 0.
type span struct{ From, Through uint64 }

const buckets = 64

//go:embed apply.lua
var applySource string

var applyScript = goredis.NewScript(applySource)

// Features returns a handle that knows no history until it was mended once.
func (c *Client) Features() *Features { return &Features{Client: c} }

// Apply adds each event once and returns the histories of its entities as of its own time, in one round trip. What cannot be
// applied is remembered, and no history is known until [Features.Mend] has made up for it.
func (f *Features) Apply(ctx context.Context, events []enrich.Event) ([][]enrich.History, error) {
	before := f.counted()
	var answers []*goredis.Cmd
	err := f.call(ctx, func(ctx context.Context) error {
		var err error
		answers, err = f.evaluate(ctx, events, true)
		return err
	})
	if err != nil {
		f.owe(events)
		return nil, fmt.Errorf("features: %w", err)
	}
	out := make([][]enrich.History, len(events))
	for i, e := range events {
		out[i] = make([]enrich.History, len(e.Entities))
		for j, entity := range e.Entities {
			r, err := read(answers[0])
			if err != nil {
				f.owe(events)
				return nil, fmt.Errorf("features: %w", err)
			}
			answers = answers[1:]
			if f.trusts(r, bucketOf(entity.Key), before) {
				out[i][j] = r.history
			}
		}
	}
	return out, nil
}

// Peek returns what Apply would, in one round trip. It asks nothing of [Features.Mend]: a bucket that is complete says so.
func (f *Features) Peek(ctx context.Context, events []enrich.Event) ([][]enrich.History, error) {
	var answers []*goredis.Cmd
	err := f.call(ctx, func(ctx context.Context) error {
		var err error
		answers, err = f.evaluate(ctx, events, false)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("features: %w", err)
	}
	out := make([][]enrich.History, len(events))
	for i, e := range events {
		out[i] = make([]enrich.History, len(e.Entities))
		for j := range e.Entities {
			r, err := read(answers[0])
			if err != nil {
				return nil, fmt.Errorf("features: %w", err)
			}
			answers = answers[1:]
			if r.epoch == "" {
				continue
			}
			if out[i][j] = r.history; !r.there {
				out[i][j].Count(e)
			}
		}
	}
	return out, nil
}

// evaluate runs the script for every entity of every event, in order, and once more from the start where a server did not
// have it yet: a repeat reads what the first run would have.
func (f *Features) evaluate(ctx context.Context, events []enrich.Event, add bool) ([]*goredis.Cmd, error) {
	answers, err := f.pipeline(ctx, events, add)
	for _, a := range answers {
		if goredis.HasErrorPrefix(a.Err(), "NOSCRIPT") {
			if err := applyScript.Load(ctx, f.rdb).Err(); err != nil {
				return nil, err
			}
			return f.pipeline(ctx, events, add)
		}
	}
	return answers, err
}

var keep = 2 * enrich.Windows[len(enrich.Windows)-1].Span.Milliseconds()

func (f *Features) pipeline(ctx context.Context, events []enrich.Event, add bool) ([]*goredis.Cmd, error) {
	pipe := f.rdb.Pipeline()
	var answers []*goredis.Cmd
	for _, e := range events {
		id := sha256.Sum256([]byte(e.Key))
		amount := ""
		if add {
			amount = strconv.FormatInt(max(0, e.Amount), 10)
		}
		args := []any{id[:16], e.At.UnixMilli(), amount, keep}
		for _, w := range enrich.Windows {
			args = append(args, w.Span.Milliseconds())
		}
		for _, entity := range e.Entities {
			bucket := bucketOf(entity.Key)
			key := f.key(tag(bucket), entity.Key)
			answers = append(answers, applyScript.EvalSha(ctx, pipe, []string{key + ":t", key + ":s", f.marker(bucket)}, args...))
		}
	}
	if len(answers) == 0 {
		return nil, nil
	}
	_, err := pipe.Exec(ctx)
	return answers, err
}

// bucketOf spreads entities evenly; tag makes a bucket one slot of a cluster.
func bucketOf(key string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	return int(h.Sum32() % buckets)
}

func tag(bucket int) string { return "{f" + strconv.Itoa(bucket) + "}" }

// marker is the installation's, not a tenant's: no tenant has a colon in its name.
func (f *Features) marker(bucket int) string { return f.prefix + "crivo:features/" + tag(bucket) }

// result is what the script answers.
type result struct {
	epoch   string
	writes  uint64
	history enrich.History
	there   bool // the event is counted
}

var errAnswer = errors.New("redis: the script's answer has another shape")

func read(answer *goredis.Cmd) (result, error) {
	all, err := answer.Slice()
	if err != nil {
		return result{}, err
	}
	if len(all) != 8 {
		return result{}, errAnswer
	}
	counts, _ := all[5].([]any)
	ends, _ := all[6].([]any)
	if len(counts) != len(enrich.Windows) || len(ends) != len(enrich.Windows)+1 {
		return result{}, errAnswer
	}
	h := enrich.History{Known: true, Since: later(number(all[1]), number(all[2]))}
	if text(all[4]) != "" {
		h.First = time.UnixMilli(number(all[4]))
	}
	for w := range counts {
		h.Counts, h.Sums = append(h.Counts, number(counts[w])), append(h.Sums, sum(ends[0])-sum(ends[w+1]))
	}
	return result{epoch: text(all[0]), writes: uint64(number(all[3])), history: h, there: number(all[7]) == 1}, nil
}

// later returns the later of two times that may be absent.
func later(a, b int64) time.Time {
	if a == 0 && b == 0 {
		return time.Time{}
	}
	return time.UnixMilli(max(a, b))
}

// sum adds the two parts of a running sum.
func sum(end any) int64 {
	parts, _ := end.([]any)
	total := int64(0)
	for _, p := range parts {
		total += number(p)
	}
	return total
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// number reads what the server counts or keeps as text; an absent field is 0.
func number(v any) int64 {
	if n, ok := v.(int64); ok {
		return n
	}
	n, _ := strconv.ParseInt(text(v), 10, 64)
	return n
}

func (f *Features) counted() [buckets]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}

// trusts tells whether an answer is of a complete store: its bucket has the epoch this process knows and did not fall behind
// what was known of it before the question, no server evicts, and the process owes nothing.
func (f *Features) trusts(r result, bucket int, before [buckets]uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen(bucket, r.writes, r.epoch, before)
	return r.epoch != "" && r.epoch == f.epoch && !f.evicted && f.torn <= f.mended && f.owed == span{}
}

// seen takes a bucket's count of writes and notices when it went back. before is what was known when the question was asked:
// answers to questions asked at once come in any order.
func (f *Features) seen(bucket int, writes uint64, epoch string, before [buckets]uint64) {
	if writes < before[bucket] {
		f.falls++
		f.writes[bucket] = writes
		if epoch != "" {
			f.torn = f.falls
		}
	}
	f.writes[bucket] = max(f.writes[bucket], writes)
}

// owe remembers events that may not have been applied. Those of no stream have no sequence and cannot be replayed.
func (f *Features) owe(events []enrich.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		if e.Sequence == 0 {
			continue
		}
		if f.owed.From == 0 || e.Sequence < f.owed.From {
			f.owed.From = e.Sequence
		}
		f.owed.Through = max(f.owed.Through, e.Sequence)
	}
}
