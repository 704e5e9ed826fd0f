package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"crivo/pkg/client"
	"crivo/pkg/txn"
	"crivo/pkg/webhook"
)

// streams answers with text, and then ends, or says nothing more until it is left.
func streams(text string, stays bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, in := io.Pipe()
		w.(*recorder).body = out
		go func() {
			_, _ = io.WriteString(in, text)
			if stays {
				<-r.Context().Done()
				_ = in.CloseWithError(r.Context().Err())
				return
			}
			_ = in.Close()
		}()
	}
}

func event(id string) string {
	return "id: " + id + "\nevent: transaction.decided\ndata: " + decided + "\n\n"
}

func TestEventsGoOnWhereTheyBroke(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, f := edge(
			streams(": hello\n\n"+event("1")+event("2")+"id: 3\ndata: half", false),
			nil,
			problem(503, "draining", "Retry-After", "3"),
			streams(event("3")+":\n\n", true), // and silence, which is a dead connection
			streams("retry: 8000\n\n"+event("4"), false),
			streams(event("5"), true))
		var ids []string
		for e, err := range c.Events(ctx, "0") {
			if err != nil {
				t.Fatal(err)
			}
			if d, err := e.Decision(); err != nil || d.ID != "ord-1" || d.Decision != txn.Review {
				t.Errorf("%+v, %v", d, err)
			}
			if ids = append(ids, e.ID); e.ID == "5" {
				break
			}
		}
		var last []string
		for _, r := range f.requests {
			last = append(last, r.what+" "+r.last)
		}
		const path = "GET /v1/events "
		if !slices.Equal(ids, []string{"1", "2", "3", "4", "5"}) || !slices.Equal(last, []string{path + "0", path + "2", path + "2", path + "2", path + "3", path + "4"}) {
			t.Errorf("heard %v by %v", ids, last)
		}
		at := func(i int) time.Duration { return f.requests[i].at - f.requests[i-1].at }
		if at(3) < 3*time.Second || at(4) < 45*time.Second || at(4) > 46*time.Second || at(5) < 8*time.Second {
			t.Errorf("asked again after %v, %v, %v", at(3), at(4), at(5))
		}
	})
}

func TestEventsKeepTheirPlaceWhereNothingIsDecided(t *testing.T) {
	in(t, 0, func(t *testing.T, ctx context.Context) {
		c, f := edge(
			streams(": hello\nretry: 1000\nid: a\n\n", false), // what is decided until the next one is not missed
			streams(": hello\nid: b\n\n: still here\nid: c\n\nid: half\n", false),
			streams(event("1"), true))
		for e, err := range c.Events(ctx, "") {
			if err != nil || e.ID != "1" {
				t.Errorf("%+v, %v", e, err)
			}
			break
		}
		var last []string
		for _, r := range f.requests {
			last = append(last, r.last)
		}
		if !slices.Equal(last, []string{"", "a", "c"}) {
			t.Errorf("went on from %q", last)
		}
	})
}

func TestCommentsKeepAConnection(t *testing.T) {
	in(t, 5*time.Minute, func(t *testing.T, ctx context.Context) {
		c, f := edge(func(w http.ResponseWriter, r *http.Request) {
			out, in := io.Pipe()
			w.(*recorder).body = out
			context.AfterFunc(r.Context(), func() { _ = in.CloseWithError(r.Context().Err()) })
			go func() {
				for range 8 {
					time.Sleep(15 * time.Second)
					_, _ = io.WriteString(in, ":\n\n")
				}
				_, _ = io.WriteString(in, event("1"))
			}()
		})
		for _, err := range c.Events(ctx, "") {
			if err != nil || len(f.requests) != 1 {
				t.Errorf("%v after %d requests", err, len(f.requests))
			}
			break
		}
	})
}

func TestEventsEndWithAnError(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"too long ago":    {problem(410, "gone"), client.ErrGone},
		"no role":         {problem(403, "forbidden"), client.ErrKey},
		"the context":     {streams("", true), context.DeadlineExceeded},
		"while it is off": {nil, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 20*time.Second, func(t *testing.T, ctx context.Context) {
				c, _ := edge(tc.answer)
				var ended []error
				for _, err := range c.Events(ctx, "") {
					ended = append(ended, err)
				}
				if len(ended) != 1 || !errors.Is(ended[0], tc.want) {
					t.Errorf("ended with %v", ended)
				}
			})
		})
	}
}

func TestServerSentEvents(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"one":                 {"id: 1\nevent: a\ndata: x\n\n", "1 a x;"},
		"without spaces":      {"id:1\nevent:a\ndata:x\n\n", "1 a x;"},
		"one space is cut":    {"data:  x\n\n", "  " + " x;"},
		"carriage returns":    {"id: 1\r\ndata: x\r\n\r\n", "1  x;"},
		"many lines":          {"data: x\ndata: y\ndata\n\n", "  x\ny\n;"},
		"comments, no data":   {": c\n\nid: 7\n\ndata: x\n\n", "7  x;"},
		"an id stays":         {"id: 1\ndata: x\n\ndata: y\n\nid\ndata: z\n\n", "1  x;1  y;  z;"},
		"an id with NUL":      {"id: 1\x002\ndata: x\n\n", "  x;"},
		"unknown field":       {"extra: 1\ndata: x\n\n", "  x;"},
		"half an event":       {"data: x\n", ""},
		"an empty one":        {"data:\n\n", "  ;"},
		"an event's own type": {"event: a\n\ndata: x\n\n", "  x;"},
	} {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			for _, e := range client.ReadEvents(tc.text) {
				fmt.Fprintf(&got, "%s %s %s;", e.ID, e.Type, e.Data)
			}
			if got.String() != tc.want {
				t.Errorf("got %q, want %q", got.String(), tc.want)
			}
		})
	}
}

func FuzzEvents(f *testing.F) {
	f.Add(event("1") + ": c\n\nretry: 9\ndata\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, e := range client.ReadEvents(text) {
			if strings.ContainsAny(e.ID+e.Type, "\x00\n") && !strings.Contains(e.Type, "\x00") || len(e.Data) > len(text) {
				t.Errorf("%q gave %+v", text, e)
			}
		}
	})
}

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

var sent = time.Unix(1795388711, 0)

func signed(t testing.TB, body string) http.Header {
	t.Helper()
	s, err := webhook.ParseSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	return http.Header{webhook.HeaderID: {"msg_1"}, webhook.HeaderTimestamp: {strconv.FormatInt(sent.Unix(), 10)},
		webhook.HeaderSignature: {webhook.Sign([]webhook.Secret{s}, "msg_1", sent, []byte(body))}}
}

func TestAWebhookIsADecision(t *testing.T) {
	for name, data := range map[string]string{
		"thin": `{"id":"ord-1","decision":"review","score":45,"risk_band":"medium","reasons":["NIGHT_LARGE"]}`,
		"full": decided,
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"type":"transaction.decided","timestamp":"2026-11-22T23:05:11.649Z","data":` + data + `}`
			e, err := client.VerifyWebhook(secret, signed(t, body), []byte(body), sent.Add(time.Minute))
			if err != nil || e.ID != "msg_1" || e.At.UnixMilli() != 1795388711649 {
				t.Fatalf("%+v, %v", e, err)
			}
			if d, err := e.Decision(); err != nil || d.ID != "ord-1" || d.Decision != txn.Review || d.Score != 45 || d.Reasons[0].Code != "NIGHT_LARGE" {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}

func TestAWebhookThatIsNotOurs(t *testing.T) {
	body := `{"type":"endpoint.disabled","timestamp":"2026-11-22T23:05:11.649Z","data":{}}`
	for name, tc := range map[string]struct {
		secret, body string
		now          time.Time
		want         error
	}{
		"changed":        {secret, strings.Replace(body, "disabled", "Disabled", 1), sent, webhook.ErrSignature},
		"another secret": {webhook.NewSecret().Reveal(), body, sent, webhook.ErrSignature},
		"old":            {secret, body, sent.Add(301 * time.Second), webhook.ErrTimestamp},
		"ahead":          {secret, body, sent.Add(-301 * time.Second), webhook.ErrTimestamp},
		"no secret":      {"", body, sent, webhook.ErrSecret},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := client.VerifyWebhook(tc.secret, signed(t, body), []byte(tc.body), tc.now); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	if e, err := client.VerifyWebhook(secret, signed(t, body), []byte(body), sent); err != nil || e.Type != "endpoint.disabled" {
		t.Errorf("%+v, %v", e, err)
	} else if _, err := e.Decision(); err == nil {
		t.Error("it was taken for a decision")
	}
	if _, err := client.VerifyWebhook(secret, signed(t, "[]"), []byte("[]"), sent); err == nil {
		t.Error("an array was taken for an event")
	}
}
