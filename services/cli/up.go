package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"crivo/pkg/app"
	"crivo/pkg/seal"
	"crivo/pkg/stage"
	"crivo/services/broker"
	"crivo/services/edge"
	"crivo/services/enrich"
	"crivo/services/keeper"
	"crivo/services/process"
	"crivo/services/rules"
	"crivo/services/store"
	"crivo/services/store/memory"
	"crivo/services/store/mongo"
	"crivo/services/store/redis"
	"crivo/services/store/sqlite"
	"crivo/streams"
)

// UpCmd runs the whole system in one process.
type UpCmd struct{ system }

// Help shows an example.
func (UpCmd) Help() string {
	return `Everything is embedded: NATS, SQLite, windows in memory. What is kept is in the data folder; the same command on the same
folder goes on where it was, after a kill too. --nats-url, --mongo-uri and --redis-url put real parts in the place of embedded
ones, each by itself. Examples:

  crivo up --data ./crivo-data --webhook-allow 127.0.0.1/32
  crivo up --mongo-uri mongodb://127.0.0.1:27017 --redis-url redis://127.0.0.1:6379`
}

// Run starts everything, greets, and drains when ctx ends.
func (c *UpCmd) Run(ctx context.Context) error {
	started := time.Now()
	u := &upped{system: c.system, failed: make(chan error, 16)}
	defer u.close()
	if err := u.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if err := u.start(); err != nil {
		u.drain()
		return err
	}
	if err := u.ready(ctx); err != nil {
		u.drain()
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	u.log.Info().Dur("took_ms", time.Since(started)).Msg("ready")
	u.greet(os.Stdout)
	var err error
	select {
	case <-ctx.Done():
	case err = <-u.failed:
	}
	u.drain()
	return err
}

// upped is a running system. What is opened is closed in reverse.
type upped struct {
	system
	folder   *folder
	log      zerolog.Logger
	clock    *app.Clock
	health   *app.Health
	registry *prometheus.Registry
	steps    *stage.Metrics
	ops      *app.Ops
	http     net.Addr // of the API
	door     *edge.Door
	broker   *broker.Server // nil with a real one
	admin    *nats.Conn     // provisions at start, watches the drain
	js       jetstream.JetStream
	stores   stores
	keys     *seal.Keyring
	rules    *rules.Live
	apiKey   string
	keyPath  string // of the key that up made; empty where one was given

	undo     []func()
	services []*service
	failed   chan error // the first service that ended by itself
}

// stores are the databases, embedded or real.
type stores struct {
	transactions store.Transactions
	registry     store.Registry
	deliveries   store.Deliveries
	expirer      keeper.Expirer // nil: the deliveries go by themselves
	features     interface {
		enrich.Features
		enrich.Reader
	}
}

// open brings up what the services stand on, from the folder to the streams.
func (u *upped) open(ctx context.Context) error {
	for _, step := range []func(context.Context) error{u.openFolder, u.openOps, u.openHTTP, u.openKeys, u.openStores, u.openBroker, u.openStreams} {
		if err := step(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// later has undo run at the end, in reverse order.
func (u *upped) later(undo func()) { u.undo = append(u.undo, undo) }

func (u *upped) close() {
	for i := len(u.undo) - 1; i >= 0; i-- {
		u.undo[i]()
	}
}

func (u *upped) openFolder(context.Context) error {
	var err error
	u.clock = app.NewClock(nil)
	if u.log, err = app.NewLog(os.Stderr, u.LogLevel, u.clock.Now); err != nil {
		return usage(err)
	}
	if u.folder, err = openFolder(u.Data); err != nil {
		return err
	}
	u.later(u.folder.close)
	if u.folder.shared {
		u.log.Warn().Str("data", u.Data).Msg("others may enter the data folder: chmod 700 it")
	}
	u.apiKey, u.keyPath, err = u.folder.apiKey(u.APIKey.Reveal())
	return err
}

// openOps comes early, so that a slow start can be watched.
func (u *upped) openOps(context.Context) error {
	u.health, u.registry = &app.Health{}, app.NewRegistry()
	u.health.Set(starting, "starting")
	u.steps = stage.NewMetrics(u.registry)
	var err error
	if u.ops, err = app.ServeOps(u.Ops, u.health, u.registry); err != nil {
		return fmt.Errorf("%w (--ops)", err)
	}
	u.later(u.ops.Close)
	if !process.Loopback(u.Ops) {
		u.log.Warn().Str("ops", u.Ops).Msg("operations address is reachable from other machines")
	}
	return nil
}

// openHTTP takes the port before anything else is at stake.
func (u *upped) openHTTP(context.Context) error {
	certificate, err := u.TLS()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", u.HTTP)
	if err != nil {
		return fmt.Errorf("API address: %w (--http)", err)
	}
	u.http = listener.Addr()
	u.door, err = edge.OpenDoor(edge.Doorway{Listener: listener, TLS: certificate, InsecureHTTP: u.InsecureHTTP, Health: u.health, Log: u.log})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	u.later(u.door.Close)
	return nil
}

func (u *upped) openKeys(context.Context) error {
	var err error
	if u.KeysetFile != "" {
		u.keys, err = seal.Open(u.KeysetFile, false)
	} else {
		u.keys, err = u.folder.keyring()
	}
	if err != nil {
		return err
	}
	set, err := rules.Default()
	if err != nil {
		return fmt.Errorf("rule set: %w", err)
	}
	u.rules = rules.NewLive(set)
	return nil
}

func (u *upped) openStores(ctx context.Context) error {
	if u.MongoURI != "" {
		if err := u.openMongo(ctx); err != nil {
			return err
		}
	} else if err := u.openSQLite(); err != nil {
		return err
	}
	if u.RedisURL != "" {
		client, err := redis.Open(redis.Options{URL: u.RedisURL.Reveal(), Log: u.log})
		if err != nil {
			return err
		}
		u.later(u.closing("features", client.Close))
		u.stores.features = client.Features()
		return nil
	}
	features, err := memory.OpenFeatures(u.folder.file("features"))
	if err != nil {
		return err
	}
	u.later(u.closing("features", features.Close))
	u.stores.features = features
	return nil
}

func (u *upped) openSQLite() error {
	o := sqlite.Options{Sync: u.Durability == "fsync"}
	transactions, err := sqlite.OpenTransactions(u.folder.file("transactions.db"), o)
	if err != nil {
		return err
	}
	u.later(u.closing("transactions", transactions.Close))
	registry, err := sqlite.OpenRegistry(u.folder.file("registry.db"), o)
	if err != nil {
		return err
	}
	u.later(u.closing("registry", registry.Close))
	deliveries, err := sqlite.OpenDeliveries(u.folder.file("deliveries.db"), o)
	if err != nil {
		return err
	}
	u.later(u.closing("deliveries", deliveries.Close))
	u.stores.transactions, u.stores.registry, u.stores.deliveries = transactions, registry, deliveries
	u.stores.expirer = deliveries
	return nil
}

// openMongo waits for the database, which may be started after us.
func (u *upped) openMongo(ctx context.Context) error {
	db, err := mongo.Open(mongo.Options{URI: u.MongoURI.Reveal(), Database: u.MongoDatabase, App: "crivo-up"})
	if err != nil {
		return err
	}
	u.later(u.closing("database", func() error { return db.Close(context.Background()) }))
	u.stores.transactions, u.stores.registry, u.stores.deliveries = db.Transactions(), db.Registry(), db.Deliveries()
	return app.Until(ctx, app.Shell{Log: u.log, Health: u.health}, "the database", db.Ensure)
}

func (u *upped) closing(name string, closeStore func() error) func() {
	return func() {
		if err := closeStore(); err != nil {
			u.log.Error().Err(err).Str("store", name).Msg("store did not close cleanly")
		}
	}
}

func (u *upped) openBroker(context.Context) error {
	if u.NATSURL != "" {
		return nil
	}
	host, port, err := u.natsAddress()
	if err != nil {
		return err
	}
	u.broker, err = broker.Start(broker.Options{Dir: u.folder.file("nats"), Host: host, Port: port, Sync: u.Durability == "fsync",
		Keys: u.folder.file("nats-keys.json"), Log: &u.log})
	if err != nil {
		return err
	}
	u.later(u.broker.Close)
	if host == "" {
		return nil
	}
	if !process.Loopback(u.NATS) {
		u.log.Warn().Str("nats", u.NATS).Msg("NATS is reachable from other machines, without TLS")
	}
	return u.broker.OperatorCreds(u.folder.file(credsFile))
}

// natsAddress splits --nats as the broker wants it: -1 is any free port. A taken port is said before the broker would hang on it.
func (u *upped) natsAddress() (host string, port int, err error) {
	if u.NATS == "none" {
		return "", 0, nil
	}
	probe, err := net.Listen("tcp", u.NATS)
	if err != nil {
		return "", 0, fmt.Errorf("NATS address: %w (--nats)", err)
	}
	address := probe.Addr().(*net.TCPAddr)
	return address.IP.String(), address.Port, probe.Close()
}

// openStreams provisions before any service starts: none has to wait for its consumer, and what is wrong is said at once.
func (u *upped) openStreams(ctx context.Context) error {
	var err error
	if u.admin, u.js, err = u.connect("up", []string{"$JS.API.>"}, []string{streams.InboxPrefix("up") + ".>"}); err != nil {
		return err
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	synced, err := u.provision(ctx, watching)
	if err != nil {
		stop()
		return err
	}
	u.later(func() { stop(); <-synced })
	return u.waits(ctx, "the broker, to put decisions back", func(ctx context.Context) error {
		return keeper.Restore(ctx, keeper.Config{Shell: app.Shell{Conn: u.admin, JS: u.js, Clock: u.clock, Log: u.log, Metrics: prometheus.NewRegistry(),
			Health: u.health}, Transactions: u.stores.transactions})
	})
}

// provision makes the streams and has the clock kept to the broker's until watching ends.
func (u *upped) provision(ctx, watching context.Context) (synced <-chan struct{}, err error) {
	provision := streams.Ensure
	if u.broker == nil {
		provision = streams.Make // another keeper may be at work: ours changes what differs once its turn comes
	}
	err = u.waits(ctx, "the broker, to make the streams", func(ctx context.Context) (err error) {
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		changes, err := provision(bounded, u.js, u.Layout())
		if len(changes) > 0 {
			u.log.Debug().Strs("changes", changes).Msg("streams provisioned")
		}
		if err != nil {
			return fmt.Errorf("streams: %w", err)
		}
		synced, err = u.clock.Keep(watching, u.admin, streams.Submitted)
		return err
	})
	return synced, err
}

// waits tries do until it works where the broker is a real one, which may be started after us or go meanwhile; the embedded one has
// no excuse.
func (u *upped) waits(ctx context.Context, what string, do func(context.Context) error) error {
	if u.broker != nil {
		return do(ctx)
	}
	return app.Until(ctx, app.Shell{Log: u.log, Health: u.health}, what, do)
}

// connect opens a connection for one part of the system, with that part's own rights.
func (u *upped) connect(name string, publish, subscribe []string) (*nats.Conn, jetstream.JetStream, error) {
	c := app.Connection{Name: "crivo-" + name, Inbox: streams.InboxPrefix(name), Log: u.log, Health: u.health}
	if u.NATSURL != "" {
		real := u.external.broker()
		c.URL, c.Creds, c.Extra = real.NATSURL.Reveal(), real.NATSCreds, real.NATS()
	} else {
		who, err := u.broker.As(name, publish, subscribe)
		if err != nil {
			return nil, nil, err
		}
		c.Extra = []nats.Option{who, u.broker.InProcess()}
	}
	nc, err := app.Connect(c)
	if err != nil {
		return nil, nil, err
	}
	u.later(nc.Close)
	js, err := app.JetStream(nc)
	return nc, js, err
}

// holder is the keeper's name: on a broker of its own no other process can be meant, and a start after a kill waits for nobody.
func (u *upped) holder() string {
	if u.broker == nil {
		return ""
	}
	return "up"
}

// batchFrom is the embedded broker's own figure; of a real one nothing is known, and single publishes are never wrong.
func (u *upped) batchFrom() int {
	if u.broker == nil {
		return 0
	}
	return u.broker.BatchFrom()
}

// starting is the part of the health that says so.
const starting = "start"

// ready waits until nothing says that it is not, and the API answers.
func (u *upped) ready(ctx context.Context) error {
	patience := time.NewTimer(10 * time.Second)
	defer patience.Stop()
	for {
		waiting := u.health.Reasons()
		delete(waiting, starting)
		if len(waiting) == 0 && u.alive(ctx) {
			u.health.Set(starting, "")
			return nil
		}
		select {
		case err := <-u.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-patience.C:
			u.log.Warn().Interface("for", waiting).Msg("still waiting to be ready")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// errEnded is what a service that stops unasked is reported as.
var errEnded = errors.New("ended by itself")
