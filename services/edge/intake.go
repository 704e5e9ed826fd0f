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
	Location string         `json:"location,omitempty"`
	Replayed bool           `json:"idempotent_replayed,omitempty"`
	Body     jsontext.Value `json:"body"`
}

// intake answers tx.intake.<tenant> as a micro service; edges share the work by queue group. The user's permissions say which
// tenants it may speak for.
func (e *edge) intake(ctx context.Context) (micro.Service, error) {
	s, err := micro.AddService(e.Conn, micro.Config{Name: "crivo-edge", Version: "1.0.0", Description: "payments in, acceptance out", QueueGroup: "edge"})
	if err != nil {
		return nil, err
	}
	room := make(chan struct{}, intakeAtOnce)
	return s, s.AddEndpoint("intake", micro.HandlerFunc(func(r micro.Request) {
		select {
		case room <- struct{}{}:
		default:
			e.respond(r, reply{}, errOverload)
			return
		}
		go func() {
			defer func() { <-room }()
			out, err := e.take(ctx, r)
			e.respond(r, out, err)
		}()
	}), micro.WithEndpointSubject(streams.Subject(streams.EventIntake, "*")))
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
	out := reply{Status: http.StatusAccepted, Location: "/v1/transactions/" + a.key.ID, Replayed: a.replayed}
	if wait := preferWait(nats.Header(r.Headers()).Values("Prefer")); a.event == nil && wait > 0 {
		if a.event, err = e.await(ctx, a, time.Duration(wait)*time.Second); err != nil {
			return reply{}, err
		}
	}
	if a.event == nil {
		out.Body, err = json.Marshal(map[string]string{"id": a.key.ID, "status": "processing"}, json.Deterministic(true))
		return out, err
	}
	out.Status = http.StatusOK
	out.Body, err = public(a.event)
	return out, err
}

func tenantOf(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }

// respond replies; a refused request that nobody listens for is told on tx.rejected, with faults and without values.
func (e *edge) respond(r micro.Request, out reply, err error) {
	if err != nil {
		p := problemOf(err, newRequestID(""))
		if !p.known {
			e.Log.Error().Err(err).Str("request_id", p.RequestID).Msg("intake failed")
		}
		body, marshalErr := json.Marshal(&p)
		if marshalErr != nil {
			return
		}
		out = reply{Status: p.Status, Body: body}
	}
	e.metrics.requests.WithLabelValues("nats intake", http.StatusText(out.Status)).Inc()
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
