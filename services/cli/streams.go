package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"crivo/pkg/txn"
	"crivo/services/config"
	"crivo/services/process"
	"crivo/streams"
)

// StreamsCmd looks after a broker's streams and consumers by hand.
type StreamsCmd struct {
	Apply StreamsApplyCmd `cmd:"" help:"Create what is missing and update what differs."`
	Show  StreamsShowCmd  `cmd:"" help:"Show how full the streams are and how far the consumers."`
	Diff  StreamsDiffCmd  `cmd:"" help:"Tell what apply would change; exit status 1 when there is something."`
}

// natsServer is how a command reaches a running broker.
type natsServer struct {
	NATSURL   string `help:"Where the broker is." name:"nats-url" default:"nats://127.0.0.1:4222" placeholder:"URL"`
	NATSCreds string `help:"Credential file; without it ./crivo-data/nats.creds where that exists." name:"nats-creds" placeholder:"FILE"`
	JSON      bool   `help:"Print as JSON." name:"json"`
}

const (
	connectWithin = 2 * time.Second
	answerWithin  = 30 * time.Second // creating a stream on a busy cluster takes seconds
)

// operatorCreds is where up keeps the credential of whoever may do everything.
var operatorCreds = filepath.Join("crivo-data", credsFile)

// with runs do on a connection of its own.
func (s natsServer) with(ctx context.Context, do func(context.Context, jetstream.JetStream) error) error {
	creds := s.NATSCreds
	if creds == "" {
		if _, err := os.Stat(operatorCreds); err == nil {
			creds = operatorCreds
		}
	}
	options := []nats.Option{nats.Name("crivo streams"), nats.Timeout(connectWithin), nats.NoReconnect()}
	if creds != "" {
		if _, err := os.Stat(creds); err != nil {
			return usage(fmt.Errorf("--nats-creds: %w", err))
		}
		options = append(options, nats.UserCredentials(creds))
	}
	nc, err := nats.Connect(s.NATSURL, options...)
	if err != nil {
		return s.unreachable(err, creds)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return do(ctx, js)
}

// unreachable says why there is no connection and what to do about it.
func (s natsServer) unreachable(err error, creds string) error {
	at := withoutPassword(s.NATSURL)
	switch {
	case errors.Is(err, nats.ErrAuthorization) && creds == "":
		return fmt.Errorf("the broker at %s asks for a credential: give --nats-creds", at)
	case errors.As(err, new(*url.Error)): // it quotes what it could not read
		return fmt.Errorf("no broker at %s", at)
	case errors.Is(err, nats.ErrAuthorization):
		return fmt.Errorf("the broker at %s does not know the credential %s", at, creds)
	}
	return fmt.Errorf("no broker at %s: %w", at, err)
}

// withoutPassword shows addresses of servers, a comma between them, without what they hold of passwords and tokens, of which MongoDB's
// options are some.
func withoutPassword(urls string) string {
	if at := strings.IndexAny(urls, "?#"); at >= 0 {
		if strings.Contains(urls[at:], "@") { // amid a password that is not escaped
			return "(not an address)"
		}
		urls = urls[:at]
	}
	shown := strings.Split(urls, ",")
	for i, text := range shown {
		text = strings.TrimSpace(text)
		if !strings.Contains(text, "://") {
			text = "//" + text
		}
		shown[i] = "(not an address)"
		if u, err := url.Parse(text); err == nil {
			u.User = nil
			shown[i] = strings.TrimPrefix(u.String(), "//")
		}
		if strings.Contains(shown[i], "@") { // of a password that is not escaped
			shown[i] = "(not an address)"
		}
	}
	return strings.Join(shown, ",")
}

// StreamsApplyCmd provisions.
type StreamsApplyCmd struct {
	natsServer
	process.Streams
}

// Help shows an example.
func (StreamsApplyCmd) Help() string {
	return `A running crivo up provisions its own streams by its own --stream-bytes; this is for brokers that are not embedded. Example:

  crivo streams apply --nats-url nats://10.0.0.5:4222 --nats-creds operator.creds --replicas 3 --stream-bytes 20GiB`
}

// Run applies and prints each change that was made, those before a failure too.
func (c *StreamsApplyCmd) Run(ctx context.Context) error {
	return c.with(ctx, func(ctx context.Context, js jetstream.JetStream) error {
		done, err := streams.Ensure(ctx, js, c.Layout())
		return errors.Join(c.changes(done), err)
	})
}

// StreamsDiffCmd compares.
type StreamsDiffCmd struct {
	natsServer
	process.Streams
}

// Help shows an example.
func (StreamsDiffCmd) Help() string {
	return "Compares with the flags given, so give those of the installation. Example:\n\n  crivo streams diff --stream-bytes 2GiB"
}

// Run prints what apply would do; that there is something is its error.
func (c *StreamsDiffCmd) Run(ctx context.Context) error {
	return c.with(ctx, func(ctx context.Context, js jetstream.JetStream) error {
		diff, refused := streams.Diff(ctx, js, c.Layout())
		if refused != nil && !streams.Refused(refused) {
			return refused
		}
		texts := make([]string, len(diff))
		for i, change := range diff {
			texts[i] = change.Text
		}
		if err := c.changes(texts); err != nil || len(texts) == 0 {
			return errors.Join(err, refused)
		}
		return errors.Join(fmt.Errorf("not as wanted (%d to change)", len(texts)), refused)
	})
}

// changes prints a list of changes, also an empty one.
func (s natsServer) changes(texts []string) error {
	if s.JSON {
		if texts == nil {
			texts = []string{}
		}
		return printJSON(map[string][]string{"changes": texts})
	}
	for _, text := range texts {
		fmt.Println(text)
	}
	if len(texts) == 0 {
		fmt.Println("nothing to change")
	}
	return nil
}

// StreamsShowCmd shows the state.
type StreamsShowCmd struct{ natsServer }

// Help shows an example.
func (StreamsShowCmd) Help() string {
	return "Example, beside a running crivo up:\n\n  crivo streams show"
}

// streamState is a stream as show prints it; limits that are not set are null.
type streamState struct {
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	Bytes    uint64    `json:"bytes"`
	Budget   *int64    `json:"max_bytes"`
	Used     *float64  `json:"used"` // share of the budget
	Replicas int       `json:"replicas"`
	FirstAt  *txn.Time `json:"first_at"`
	LastAt   *txn.Time `json:"last_at"`
}

// consumerState is a durable consumer as show prints it.
type consumerState struct {
	Name        string `json:"name"`
	Stream      string `json:"stream"`
	Pending     uint64 `json:"pending"`     // not delivered yet
	AckPending  int    `json:"ack_pending"` // delivered, not acknowledged
	Redelivered int    `json:"redelivered"`
}

// state is what show prints. What the layout names and the broker lacks is missing.
type state struct {
	Streams   []streamState   `json:"streams"`
	Consumers []consumerState `json:"consumers"`
	Missing   []string        `json:"missing"`
}

// Run reads and prints.
func (c *StreamsShowCmd) Run(ctx context.Context) error {
	return c.with(ctx, func(ctx context.Context, js jetstream.JetStream) error {
		s, err := readState(ctx, js)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(s)
		}
		return s.print()
	})
}

// readState looks at every stream of the layout, and at the bucket of attempts.
func readState(ctx context.Context, js jetstream.JetStream) (state, error) {
	s := state{Streams: []streamState{}, Consumers: []consumerState{}, Missing: []string{}}
	var names []string
	for _, stream := range streams.DefaultLayout.Streams() {
		names = append(names, stream.Name)
	}
	for _, name := range append(names, "KV_"+streams.AttemptsBucket, "KV_"+streams.LeasesBucket) {
		stream, err := js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			s.Missing = append(s.Missing, name)
			continue
		}
		if err != nil {
			return s, fmt.Errorf("stream %s: %w", name, err)
		}
		s.Streams = append(s.Streams, stateOf(stream.CachedInfo()))
		list := stream.ListConsumers(ctx)
		for info := range list.Info() {
			if info.Config.Durable == "" {
				continue // somebody who reads the stream just now
			}
			s.Consumers = append(s.Consumers, consumerState{Name: info.Name, Stream: name, Pending: info.NumPending,
				AckPending: info.NumAckPending, Redelivered: info.NumRedelivered})
		}
		if err := list.Err(); err != nil {
			return s, fmt.Errorf("consumers of %s: %w", name, err)
		}
	}
	return s, nil
}

func stateOf(info *jetstream.StreamInfo) streamState {
	s := streamState{Name: info.Config.Name, Messages: info.State.Msgs, Bytes: info.State.Bytes, Replicas: info.Config.Replicas}
	if limit := info.Config.MaxBytes; limit > 0 {
		used := float64(s.Bytes) / float64(limit)
		s.Budget, s.Used = &limit, &used
	}
	if s.Messages > 0 {
		first, last := txn.At(info.State.FirstTime), txn.At(info.State.LastTime)
		s.FirstAt, s.LastAt = &first, &last
	}
	return s
}

func (s state) print() error {
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(out, "STREAM\tMESSAGES\tBYTES\tBUDGET\tUSED\tFIRST\tLAST")
	for _, x := range s.Streams {
		budget, used := "-", "-"
		if x.Budget != nil {
			budget, used = config.Size(*x.Budget).String(), strconv.FormatFloat(100**x.Used, 'f', 1, 64)+" %"
		}
		fmt.Fprintf(out, "%s\t%d\t%d\t%s\t%s\t%s\t%s\n", x.Name, x.Messages, x.Bytes, budget, used, instant(x.FirstAt), instant(x.LastAt))
	}
	for _, name := range s.Missing {
		fmt.Fprintf(out, "%s\tmissing\n", name)
	}
	fmt.Fprintln(out, "\nCONSUMER\tSTREAM\tPENDING\tACK PENDING\tREDELIVERED")
	for _, x := range s.Consumers {
		fmt.Fprintf(out, "%s\t%s\t%d\t%d\t%d\n", x.Name, x.Stream, x.Pending, x.AckPending, x.Redelivered)
	}
	return out.Flush()
}

func instant(t *txn.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// printJSON prints one line.
func printJSON(v any) error {
	line, err := json.Marshal(v, json.Deterministic(true))
	if err == nil {
		fmt.Printf("%s\n", line)
	}
	return err
}
