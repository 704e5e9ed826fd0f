package edge

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"crivo/services/store"
	"crivo/streams"
)

// intakeAtOnce bounds requests by NATS that are under way.
const intakeAtOnce = 512

// reply is what HTTP would have answered.
type reply struct {
	Status   int            `json:"status"`
	Location string         `json:"location,omitzero"`
	Replayed bool           `json:"idempotent_replayed,omitzero"`
	Retry    int            `json:"retry_after,omitzero"` // seconds
	Body     jsontext.Value `json:"body"`
}

// intake answers tx.intake.<tenant> as a micro service; edges share the work by queue group. The user's permissions say which
// tenants it may speak for. leave hands new requests to the other edges and returns once those under way are answered.
func (e *edge) intake(ctx context.Context) (leave func(), err error) {
	s, err := micro.AddService(e.Conn, micro.Config{Name: "crivo-edge", Version: "1.0.0", Description: "payments in, acceptance out", QueueGroup: "edge"})
	if err != nil {
		return nil, err
	}
	room := make(chan struct{}, intakeAtOnce)
	leave = func() {
		_ = s.Stop()
		for range intakeAtOnce {
			room <- struct{}{}
		}
	}
	return leave, s.AddEndpoint("intake", micro.HandlerFunc(func(r micro.Request) {
		select {
		case room <- struct{}{}:
		default:
			e.respond(r, reply{}, errOverload)
			return
		}
		go func() {
			defer func() { <-room }()
			e.serveIntake(ctx, r)
		}()
	}), micro.WithEndpointSubject(streams.Subject(streams.EventIntake, "*")))
}

// serveIntake answers one request, also one that makes it panic.
func (e *edge) serveIntake(ctx context.Context, r micro.Request) {
	defer func() {
		if recover() != nil {
			e.panicked("")
			e.respond(r, reply{}, errPanic)
		}
	}()
	out, err := e.take(ctx, r)
	e.respond(r, out, err)
}

// take accepts one request by the same way as HTTP.
func (e *edge) take(ctx context.Context, r micro.Request) (reply, error) {
	tenant, ok := e.directory.current.Load().tenants[tenantOf(r.Subject())]
	if !ok {
		return reply{}, store.ErrNotFound
	}
	if err := e.admit(); err != nil {
		return reply{}, err
	}
	if len(r.Data()) > maxBody {
		return reply{}, errTooLarge
	}
	a, err := e.accept(ctx, tenant, r.Data(), traceparent(r.Headers().Get("traceparent")))
	if err != nil {
		return reply{}, err
	}
	if wait := preferWait(nats.Header(r.Headers()).Values("Prefer")); a.event == nil && wait > 0 {
		a.event = e.await(ctx, a, time.Duration(wait)*time.Second)
	}
	out := reply{Status: http.StatusAccepted, Replayed: a.replayed}
	if a.event != nil {
		out.Status = http.StatusOK
		out.Body, err = public(a.event)
		return out, err
	}
	out.Location = location(a.key)
	out.Body, err = json.Marshal(&underWay{ID: a.key.ID, Status: "processing"})
	return out, err
}

func tenantOf(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }

// respond replies; a refused request that nobody listens for is told on tx.rejected, with faults and without values.
func (e *edge) respond(r micro.Request, out reply, err error) {
	if err != nil {
		p := e.told(err, newRequestID(r.Headers().Get("X-Request-Id")))
		body, marshalErr := json.Marshal(&p)
		if marshalErr != nil {
			return
		}
		out = reply{Status: p.Status, Retry: p.retry, Body: body}
	}
	e.metrics.counted("nats intake", out.Status)
	data, marshalErr := json.Marshal(&out)
	if marshalErr != nil {
		return
	}
	if r.Reply() != "" {
		_ = r.Respond(data)
	} else if err != nil {
		_ = e.Conn.Publish(streams.Subject(streams.EventRejected, tenantOf(r.Subject())), data)
	}
}
