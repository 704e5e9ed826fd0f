// Package redis keeps what may be lost and made again: entities' histories, and a cache of checks. It says when it is
// incomplete and never waits long: a server that is away costs one short time-out now and then.
package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/rs/zerolog"
)

// Options say where the server is.
type Options struct {
	// URL is redis://[user:password@]host[:port][/db], or rediss:// for TLS. A cluster is written with its nodes as addr, all
	// or some of them: redis://user:password@a:6379?addr=b:6379&addr=c:6379. One name for all nodes is given twice.
	URL string
	// Prefix goes before every key, for tests on a server that is somebody else's too.
	Prefix string
	Log    zerolog.Logger
}

// Client is one pool of connections that the stores of this room share.
type Client struct {
	rdb     goredis.UniversalClient
	prefix  string
	log     zerolog.Logger
	breaker circuitbreaker.CircuitBreaker[any]
}

// ErrEvicts is returned for a server that may drop keys when its memory is full: what it forgot would count as zero.
var ErrEvicts = errors.New("redis evicts keys: set maxmemory-policy noeviction")

// ErrDown is returned without asking while the server is known not to answer.
var ErrDown = errors.New("redis is down")

var errURL = errors.New("redis URL: want redis://[user:password@]host[:port][/db], rediss:// for TLS, ?addr=host:port for each further node of a cluster")

const (
	// patience is that of a caller who names no deadline. The flow names its own; a replay allows more, up to ioTime.
	patience = 100 * time.Millisecond
	dialTime = 200 * time.Millisecond
	ioTime   = time.Second
	// pool is per node. One step calls once at a time and mends beside it; the rest is for the cache.
	pool = 16
	// After downAfter calls in a row that failed, one in every probeEvery may try: a server that swallows packets costs the
	// flow its patience once a second.
	downAfter  = 3
	probeEvery = time.Second
)

var silence = sync.OnceFunc(func() { goredis.SetLogger(silent{}) })

// silent drops what the driver would print to stderr by itself; every fault comes back as an error too.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Open makes a client without asking the server, which may come later: see [Client.Check].
func Open(o Options) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Hostname() == "" {
		return nil, errURL // the cause may quote the password
	}
	silence()
	c := &Client{prefix: o.Prefix, log: o.Log,
		breaker: circuitbreaker.NewBuilder[any]().WithFailureThreshold(downAfter).WithSuccessThreshold(1).WithDelay(probeEvery).Build()}
	where, err := parse(o.URL, u.Query().Has("addr"))
	if err != nil {
		return nil, errURL
	}
	where.ContextTimeoutEnabled = true
	where.DialTimeout, where.ReadTimeout, where.WriteTimeout, where.PoolTimeout = dialTime, ioTime, ioTime, ioTime
	where.DialerRetries, where.MaxRetries = 1, -1
	where.PoolSize, where.PipelinePoolSize, where.MaxActiveConns = pool, -1, pool
	where.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	c.rdb = goredis.NewUniversalClient(where)
	return c, nil
}

// parse takes from a URL what [Options] promises; what else the driver reads in it is the room's own business.
func parse(address string, cluster bool) (*goredis.UniversalOptions, error) {
	if cluster {
		o, err := goredis.ParseClusterURL(address)
		if err != nil {
			return nil, err
		}
		return &goredis.UniversalOptions{IsClusterMode: true, Addrs: o.Addrs, Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig}, nil
	}
	o, err := goredis.ParseURL(address)
	if err != nil {
		return nil, err
	}
	return &goredis.UniversalOptions{Addrs: []string{o.Addr}, DB: o.DB, Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig}, nil
}

// Close ends all connections.
func (c *Client) Close() error { return c.rdb.Close() }

// Check asks every node whether it keeps what it is given: ErrEvicts names the policy of one that does not. Any other error
// means that a node did not answer.
func (c *Client) Check(ctx context.Context) error { return c.nodes(ctx, c.checkNode) }

// nodes asks every node that is written to, at once.
func (c *Client) nodes(ctx context.Context, ask func(ctx context.Context, node goredis.UniversalClient) error) error {
	return c.call(ctx, func(ctx context.Context) error {
		if many, ok := c.rdb.(*goredis.ClusterClient); ok {
			return many.ForEachMaster(ctx, func(ctx context.Context, node *goredis.Client) error { return ask(ctx, node) })
		}
		return ask(ctx, c.rdb)
	})
}

func (c *Client) checkNode(ctx context.Context, node goredis.UniversalClient) error {
	policy, err := policyOf(ctx, node)
	if err == nil && policy == "" {
		c.log.Warn().Msg("redis does not tell its maxmemory-policy; it must be noeviction")
	}
	return cmp.Or(err, evicts(policy))
}

// evicts judges a policy; one that is not told is good.
func evicts(policy string) error {
	if policy == "" || policy == "noeviction" {
		return nil
	}
	return fmt.Errorf("%w (it is %s)", ErrEvicts, policy)
}

// policyOf asks the configuration, or the memory report where the configuration is nobody's business; "" where both are.
func policyOf(ctx context.Context, node goredis.UniversalClient) (string, error) {
	config, err := node.ConfigGet(ctx, "maxmemory-policy").Result()
	if err == nil && config["maxmemory-policy"] != "" {
		return config["maxmemory-policy"], nil
	}
	if err != nil && !refused(err) {
		return "", err
	}
	info, err := report(ctx, node)
	return line(info, "maxmemory_policy"), err
}

// runs names the processes behind all nodes. Another answer means that one was started anew, or stands in for another. It is
// ErrEvicts where one tells a policy that drops keys.
func (c *Client) runs(ctx context.Context) (string, error) {
	var mu sync.Mutex
	var ids []string
	var evicting error
	err := c.nodes(ctx, func(ctx context.Context, node goredis.UniversalClient) error {
		info, err := report(ctx, node)
		mu.Lock()
		defer mu.Unlock()
		ids, evicting = append(ids, line(info, "run_id")), cmp.Or(evicting, evicts(line(info, "maxmemory_policy")))
		return err
	})
	slices.Sort(ids)
	return strings.Join(ids, " "), errors.Join(err, evicting)
}

// report is what a node tells of itself; "" where it is forbidden. It is asked for whole: not every server takes two sections.
func report(ctx context.Context, node goredis.UniversalClient) (string, error) {
	info, err := node.Info(ctx).Result()
	if err != nil && !refused(err) {
		return "", err
	}
	return info, nil
}

// line reads one line of a report; "" where it is not told.
func line(report, name string) string {
	_, rest, _ := strings.Cut(report, "\n"+name+":")
	value, _, _ := strings.Cut(rest, "\r\n")
	return value
}

// refused tells whether the server answered and does not allow or know the command.
func refused(err error) bool {
	return goredis.HasErrorPrefix(err, "NOPERM") || goredis.HasErrorPrefix(err, "ERR")
}

// call does f unless the server is known to be down, and learns from what comes of it.
func (c *Client) call(ctx context.Context, f func(context.Context) error) error {
	if !c.breaker.TryAcquirePermit() {
		return ErrDown
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	err := f(ctx)
	switch {
	case err == nil || errors.Is(err, ErrEvicts):
		c.breaker.RecordSuccess()
	case errors.Is(err, context.Canceled) && !c.breaker.IsHalfOpen():
		// The caller went away, which says nothing of the server.
	default:
		c.breaker.RecordFailure()
	}
	return err
}

// key puts a part of this room between the tenant that a key starts with and the rest.
func (c *Client) key(room, key string) string {
	tenant, rest, _ := strings.Cut(key, "/")
	return c.prefix + tenant + "/" + room + "/" + rest
}
