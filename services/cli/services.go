package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"time"

	"crivo/pkg/app"
	"crivo/pkg/txn"
	"crivo/services/decide"
	"crivo/services/edge"
	"crivo/services/enrich"
	"crivo/services/keeper"
	"crivo/services/notify"
	"crivo/services/persist"
	"crivo/services/score"
	"crivo/services/validate"
	"crivo/streams"
)

// service is one running part of the flow.
type service struct {
	name string
	run  func(ctx context.Context, shell app.Shell) error
	stop context.CancelFunc
	done chan struct{}
}

// parts are the services in the order in which they are stopped: the door first, then the flow from its source on.
func (u *upped) parts() []*service {
	return []*service{
		{name: "edge", run: u.edge},
		{name: "keeper", run: func(ctx context.Context, s app.Shell) error {
			return keeper.Run(ctx, keeper.Config{Shell: s, Transactions: u.stores.transactions, RuleSets: u.stores.registry, Rules: u.rules.Current(),
				Layout: u.Layout(), Tenants: u.stores.registry.Tenants, State: u.stores.registry, Deliveries: u.stores.expirer,
				Replays: u.stores.registry, Outbox: u.stores.deliveries, Holder: u.holder()})
		}},
		{name: "enrich", run: func(ctx context.Context, s app.Shell) error {
			return enrich.Run(ctx, enrich.Config{Shell: s, Features: u.stores.features, RuleSet: func() txn.RuleSet { return u.rules.Current().Ref() }})
		}},
		{name: "validate", run: func(ctx context.Context, s app.Shell) error {
			return validate.Run(ctx, validate.Config{Shell: s, Blocklist: u.Blocklist, Lists: u.stores.registry, Keys: u.keys})
		}},
		{name: "score", run: func(ctx context.Context, s app.Shell) error {
			return score.Run(ctx, score.Config{Shell: s, Rules: u.rules, Engine: Version})
		}},
		{name: "persist", run: func(ctx context.Context, s app.Shell) error {
			return persist.Run(ctx, persist.Config{Shell: s, Transactions: u.stores.transactions})
		}},
		{name: "notify", run: func(ctx context.Context, s app.Shell) error {
			return notify.Run(ctx, notify.Config{Shell: s, Deliveries: u.stores.deliveries, Endpoints: u.stores.registry, States: u.stores.registry, Keys: u.keys,
				Audit: u.stores.registry.Record, Schedule: u.WebhookSchedule, Timeout: u.WebhookTimeout, Allow: u.WebhookAllow, Version: Version})
		}},
	}
}

func (u *upped) edge(ctx context.Context, s app.Shell) error {
	core, closes, err := decide.Open(ctx, u.stores.features, u.rules, validate.Config{Shell: s, Blocklist: u.Blocklist, Lists: u.stores.registry, Keys: u.keys}, Version)
	if err != nil {
		return err
	}
	defer closes()
	return edge.Run(ctx, edge.Config{Shell: s, Door: u.door,
		Transactions: u.stores.transactions, Decider: core.Guard, DryRun: core.Decide, Registry: u.stores.registry, Deliveries: u.stores.deliveries, Keys: u.keys,
		Audit: u.stores.registry.Record, Instance: strings.ToLower(rand.Text()), MaxInFlight: u.MaxInFlight, BootstrapKey: u.apiKey,
		Allow: u.WebhookAllow, NATSKey: u.natsKey(), Version: Version})
}

// natsKey makes credentials of the embedded broker, where somebody can reach it.
func (u *upped) natsKey() edge.NATSKey {
	if u.broker == nil || u.broker.URL() == "" {
		return nil
	}
	return u.broker.TenantCreds
}

// start runs every service on a connection and under a context of its own, so that they can be stopped one by one.
func (u *upped) start() error {
	for _, s := range u.parts() {
		publish, subscribe := streams.Permissions(s.name)
		nc, js, err := u.connect(s.name, publish, subscribe)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		shell := app.Shell{Name: s.name, Conn: nc, JS: js, Clock: u.clock, Log: u.log.With().Str("service", s.name).Logger(),
			Metrics: u.registry, Health: u.health, Steps: u.steps, BatchFrom: u.batchFrom()}
		ctx, stop := context.WithCancel(context.Background())
		s.stop, s.done = stop, make(chan struct{})
		u.services = append(u.services, s)
		go u.watch(ctx, s, shell)
	}
	return nil
}

// watch runs a service and reports one that ends unasked.
func (u *upped) watch(ctx context.Context, s *service, shell app.Shell) {
	defer close(s.done)
	err := s.run(ctx, shell)
	switch {
	case ctx.Err() == nil && err == nil:
		u.failed <- fmt.Errorf("%s: %w", s.name, errEnded)
	case ctx.Err() == nil:
		u.failed <- fmt.Errorf("%s: %w", s.name, err)
	case err != nil:
		u.log.Error().Err(err).Str("service", s.name).Msg("service did not end cleanly")
	}
}

// alive asks the API, by whatever name its certificate has: it is this process's own listener.
func (u *upped) alive(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.url()+"/livez", nil)
	if err != nil {
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// drain ends the system in order: nothing new comes in, what was accepted runs through, webhooks under way finish.
func (u *upped) drain() {
	u.health.Set("shutdown", "draining")
	u.log.Info().Msg("draining")
	ctx, cancel := context.WithTimeout(context.Background(), u.Grace)
	defer cancel()
	for _, s := range u.services {
		u.settled(ctx, s.name)
		s.stop()
		// One slow request must not use up the time of all that was accepted: beyond half of it the door drains beside the others.
		share, enough := context.WithTimeout(ctx, u.Grace/2)
		s.wait(share)
		enough()
	}
	for _, s := range u.services {
		s.wait(ctx) // what is not done by then is done after the next start, as after a kill
	}
	u.log.Info().Bool("in_time", ctx.Err() == nil).Msg("drained")
}

// wait returns once a service has ended, or ctx has.
func (s *service) wait(ctx context.Context) {
	select {
	case <-s.done:
	case <-ctx.Done():
	}
}

// settled waits until the step has nothing left to do, or ctx ends. What is left then waits in its stream for the next start.
func (u *upped) settled(ctx context.Context, step string) {
	for _, spec := range streams.Steps {
		if spec.Step != step {
			continue
		}
		for ctx.Err() == nil {
			consumer, err := u.js.Consumer(ctx, spec.Stream, spec.Durable)
			if err != nil {
				return
			}
			if info := consumer.CachedInfo(); info.NumPending == 0 && info.NumAckPending == 0 {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}
