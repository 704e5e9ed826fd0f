package streams

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// Letter is what a dead letter tells, without the bytes of the message that it holds.
type Letter struct {
	Sequence  uint64 // in DEADLETTERS
	Step      string
	Cause     string
	Tenant    string // NoTenant where it could not be read
	Ident     Ident  // as far as it could be read
	Unknown   error  // why the identity could not, nil where it could
	Attempts  int    // at least 1
	FirstAt   time.Time
	LastAt    time.Time // when it was given up: the letter's own time
	Detail    string
	Stream    string
	Subject   string
	MessageID string
}

// LetterQuery selects dead letters, oldest first; zero fields do not filter. Step, Cause and Tenant must be plain names.
type LetterQuery struct {
	Step, Cause, Tenant string
	From, To            time.Time // of LastAt; To is not within
	First, Last         uint64    // sequences, both within
}

const (
	letterBatch = 512
	letterBytes = 1 << 20 // of one batch, beyond its last letter: the client holds it
	letterTime  = 5 * time.Second
)

var errSilent = errors.New("the broker did not answer")

// Letters reads dead letters one after the other, in batches of bounded size and without a consumer: the broker keeps nothing
// of it. An error is the last thing it yields. Each batch has its own deadline, in which what was yielded must be dealt with.
func Letters(ctx context.Context, js jetstream.JetStream, q LetterQuery) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		for next := q.First; q.Last == 0 || next <= q.Last; {
			read, goOn := next, false
			for l, err := range letterRange(ctx, js, q, next) {
				if errors.Is(err, jetstreamext.ErrNoMessages) {
					return
				}
				if err != nil {
					yield(Letter{}, fmt.Errorf("dead letters: %w", err))
					return
				}
				if q.Last > 0 && l.Sequence > q.Last || !q.To.IsZero() && !l.LastAt.Before(q.To) {
					return
				}
				read, goOn = l.Sequence+1, true
				if !l.LastAt.Before(q.From) && !yield(l, nil) {
					return
				}
			}
			if !goOn {
				yield(Letter{}, fmt.Errorf("dead letters: %w", errSilent))
				return
			}
			next = read
		}
	}
}

// letterRange reads one batch from sequence first on, or from q.From on.
func letterRange(ctx context.Context, js jetstream.JetStream, q LetterQuery, first uint64) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		ctx, cancel := context.WithTimeout(ctx, letterTime)
		defer cancel()
		most := uint64(letterBatch)
		if q.Last > 0 {
			most = min(most, q.Last-first+1)
		}
		start := jetstreamext.GetBatchSeq(max(1, first))
		if first == 0 && !q.From.IsZero() {
			start = jetstreamext.GetBatchStartTime(q.From)
		}
		batch, err := GetBatch(ctx, js, DeadLetters, int(most), start,
			jetstreamext.GetBatchSubject(q.subject()), jetstreamext.GetBatchMaxBytes(letterBytes))
		if err != nil {
			yield(Letter{}, err)
			return
		}
		for m, err := range batch {
			if err != nil {
				yield(Letter{}, err)
				return
			}
			if !yield(readLetter(m), nil) {
				return
			}
		}
	}
}

func (q LetterQuery) subject() string {
	token := func(name string) string {
		if name == "" {
			return "*"
		}
		return name
	}
	return "dlq." + token(q.Step) + "." + token(q.Cause) + "." + token(q.Tenant)
}

// readLetter reads what Bury wrote. A letter of four tokens always tells step, cause and tenant; what else it lacks is zero.
func readLetter(m *jetstream.RawStreamMsg) Letter {
	token := strings.Split(m.Subject, ".")
	l := Letter{Sequence: m.Sequence, Step: token[1], Cause: token[2], Tenant: token[3], FirstAt: m.Time, LastAt: m.Time, Attempts: 1,
		Detail: m.Header.Get(HeaderDetail), Stream: m.Header.Get(HeaderStream), Subject: m.Header.Get(HeaderSubject), MessageID: m.Header.Get(HeaderMessageID)}
	l.Ident, l.Unknown = ReadIdent(m.Header)
	if l.Unknown == nil && l.Ident.Tenant != l.Tenant {
		l.Unknown = fmt.Errorf("identity: %s is not the subject's", HeaderTenant)
	}
	if n, err := strconv.Atoi(m.Header.Get(HeaderAttempts)); err == nil && n > 1 {
		l.Attempts = n
	}
	if ms, err := strconv.ParseInt(m.Header.Get(HeaderFirstAt), 10, 64); err == nil {
		l.FirstAt = time.UnixMilli(ms)
	}
	return l
}
