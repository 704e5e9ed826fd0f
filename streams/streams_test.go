package streams_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"crivo/pkg/app"
	"crivo/pkg/stage"
	"crivo/pkg/txn"
	"crivo/streams"
	"crivo/streams/event"
)

func ident() streams.Ident {
	return streams.Ident{Tenant: "acme", ID: "ord-10023", Run: 2, AcceptedAt: time.UnixMilli(1_795_388_711_120).UTC(),
		Deadline: time.UnixMilli(1_795_388_713_120).UTC(), Digest: "d1:k1:9f86d081", Reply: "edge.e1", Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
}

func TestTheIdentityTravelsInTheHeaders(t *testing.T) {
	want := nats.Header{"Crivo-Tenant": {"acme"}, "Crivo-Id": {"ord-10023"}, "Crivo-Run": {"2"}, "Crivo-Accepted-At": {"1795388711120"},
		"Crivo-Deadline": {"1795388713120"}, "Crivo-Digest": {"d1:k1:9f86d081"}, "Crivo-Reply": {"edge.e1"},
		"traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	if diff := cmp.Diff(want, ident().Header()); diff != "" {
		t.Error(diff)
	}
	back, err := streams.ReadIdent(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ident(), back); diff != "" {
		t.Error(diff)
	}
	bare := ident()
	bare.Reply, bare.Trace = "", ""
	if h := bare.Header(); h.Get(streams.HeaderReply) != "" || h.Get(streams.HeaderTrace) != "" || len(h) != 6 {
		t.Errorf("headers without a value: %v", h)
	}
	if back, err := streams.ReadIdent(bare.Header()); err != nil || back != bare {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestAnIdentityIsWholeOrNone(t *testing.T) {
	const canary = "52998224725"
	for name, tc := range map[string]struct {
		header string
		values []string
	}{
		"no tenant":                  {streams.HeaderTenant, nil},
		"an empty tenant":            {streams.HeaderTenant, []string{""}},
		"a tenant in capitals":       {streams.HeaderTenant, []string{"ACME"}},
		"a tenant with a dot":        {streams.HeaderTenant, []string{"a.b"}},
		"a tenant that is all":       {streams.HeaderTenant, []string{">"}},
		"a tenant with a slash":      {streams.HeaderTenant, []string{"a/b"}},
		"a tenant that is too long":  {streams.HeaderTenant, []string{strings.Repeat("a", 33)}},
		"a tenant with a line break": {streams.HeaderTenant, []string{"a\n"}},
		"no id":                      {streams.HeaderID, nil},
		"an id with a slash":         {streams.HeaderID, []string{"a/" + canary}},
		"an id that is too long":     {streams.HeaderID, []string{strings.Repeat("a", 65)}},
		"no run":                     {streams.HeaderRun, nil},
		"a run that is no number":    {streams.HeaderRun, []string{canary + "x"}},
		"run 0":                      {streams.HeaderRun, []string{"0"}},
		"a negative run":             {streams.HeaderRun, []string{"-1"}},
		"no acceptance":              {streams.HeaderAcceptedAt, nil},
		"an acceptance in words":     {streams.HeaderAcceptedAt, []string{canary + "T"}},
		"no deadline":                {streams.HeaderDeadline, nil},
		"a deadline with a fraction": {streams.HeaderDeadline, []string{"1.5"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := ident().Header()
			if h[tc.header] = tc.values; tc.values == nil {
				delete(h, tc.header)
			}
			_, err := streams.ReadIdent(h)
			if err == nil || !strings.Contains(err.Error(), tc.header) || strings.Contains(err.Error(), canary) {
				t.Errorf("got %v", err)
			}
			data, encodeErr := event.Encode(validated().Submitted)
			if encodeErr != nil {
				t.Fatal(encodeErr)
			}
			if _, _, err := streams.Read[event.Submitted](stage.Message{Header: h, Data: data}); !stage.IsUndecodable(err) {
				t.Errorf("the runner hears %v", err)
			}
		})
	}
	if _, err := streams.ReadIdent(nil); err == nil {
		t.Error("no headers at all")
	}
}

func TestRepeatsOfAnEventHaveOneID(t *testing.T) {
	for name, tc := range map[string]struct {
		event string
		run   int
		want  string
	}{
		"an event":                    {streams.EventScored, 1, "acme/ord-1/scored/1"},
		"the same of another run":     {streams.EventScored, 2, "acme/ord-1/scored/2"},
		"another event":               {streams.EventEnriched, 1, "acme/ord-1/enriched/1"},
		"a decision":                  {streams.EventDecided, 1, "acme/ord-1/decided"},
		"a decision of whichever run": {streams.EventDecided, 7, "acme/ord-1/decided"},
	} {
		if got := streams.MessageID("acme", "ord-1", tc.event, tc.run); got != tc.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestTheMapNamesEachStreamOnce(t *testing.T) {
	subjects := map[string]string{"TX_SUBMITTED": "tx.submitted.*", "TX_ENRICHED": "tx.enriched.*", "TX_VALIDATED": "tx.validated.*",
		"TX_SCORED": "tx.scored.*", "TX_DECIDED": "tx.decided.*", "TX_LABELED": "tx.labeled.*", "DEADLETTERS": "dlq.>", "CONTROL": "control.>"}
	const hour = time.Hour
	ages := map[string]time.Duration{"TX_SUBMITTED": 720 * hour, "TX_DECIDED": 720 * hour, "TX_ENRICHED": 48 * hour, "TX_VALIDATED": 48 * hour,
		"TX_SCORED": 48 * hour, "TX_LABELED": 9600 * hour, "DEADLETTERS": 2160 * hour, "CONTROL": 0}
	got, old := map[string]string{}, map[string]time.Duration{}
	for _, s := range streams.DefaultLayout.Streams() {
		got[s.Name], old[s.Name] = strings.Join(s.Subjects, " "), s.MaxAge
		if s.Replicas != 1 || !s.AllowAtomicPublish || s.Duplicates != 2*time.Minute {
			t.Errorf("%s: %d replicas, atomic %t, window %s", s.Name, s.Replicas, s.AllowAtomicPublish, s.Duplicates)
		}
	}
	if diff := cmp.Diff(subjects, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(ages, old); diff != "" {
		t.Error(diff)
	}
	consumers := streams.DefaultLayout.Consumers()
	for _, s := range streams.Steps {
		c := consumers[s.Stream]
		if c.Durable != s.Step || c.AckWait != 800*time.Millisecond || c.MaxDeliver != -1 || c.MaxAckPending != 1024 || c.BackOff != nil {
			t.Errorf("%s: %+v", s.Step, c)
		}
		if s.MaxAckPending < 4*s.Batch {
			t.Errorf("%s: %d under way, batches of %d", s.Step, s.MaxAckPending, s.Batch)
		}
	}
	if three := (streams.Layout{Replicas: 3}); three.Streams()[0].Replicas != 3 || three.Attempts().Replicas != 3 {
		t.Error("a cluster's streams are not on every node")
	}
}

func validated() event.Validated {
	var v event.Validated
	i := ident()
	v.Submitted = event.Submitted{Schema: event.Schema, Tenant: i.Tenant, ID: i.ID, Run: i.Run, ClaimedAt: txn.At(i.AcceptedAt.Add(-time.Hour)),
		AcceptedAt: txn.At(i.AcceptedAt), Deadline: txn.At(i.Deadline), Digest: i.Digest, Tx: txn.Sealed{ID: i.ID, Type: "pix", Amount: 13725, Blob: []byte("sealed")}}
	v.Features = map[string]event.Value{"payer.count_5m": {Known: true, Number: 7}}
	v.RuleSet = txn.RuleSet{Name: "default", Version: 7, Digest: "sha256:x"}
	v.Degraded = []string{"serpro: timeout"}
	v.Checks = []txn.Check{{Name: "document", Status: txn.Hit}}
	return v
}

func message(t *testing.T, e any) stage.Message {
	t.Helper()
	var data []byte
	var err error
	switch e := e.(type) {
	case event.Submitted:
		data, err = event.Encode(e)
	case event.Enriched:
		data, err = event.Encode(e)
	case event.Validated:
		data, err = event.Encode(e)
	case string:
		data = []byte(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	h := ident().Header()
	h.Set(nats.MsgIdHdr, "acme/ord-10023/x/2")
	return stage.Message{Subject: "tx.x.acme", Header: h, Data: data, Sequence: 42, Stored: time.UnixMilli(1_795_388_711_500), Deliveries: 4}
}

// claim is the body of the claim, as the store would give it.
func claim(context.Context, streams.Ident) (event.Submitted, error) {
	return validated().Submitted, nil
}

func TestABuriedMessageIsToldOfAndItsTransactionDecided(t *testing.T) {
	enriched := validated().Enriched
	for name, tc := range map[string]struct {
		spec  stage.Spec
		body  any
		claim streams.Body
		cause string
		want  func() event.Validated // what is known of it
	}{
		"enrich, from the body":            {streams.Enrich, validated().Submitted, nil, stage.CauseReject, func() event.Validated { return only(event.Enriched{Submitted: validated().Submitted}) }},
		"validate, from the body":          {streams.Validate, enriched, nil, stage.CauseExhausted, func() event.Validated { return only(enriched) }},
		"score, from the body":             {streams.Score, validated(), nil, stage.CausePanic, validated},
		"score, crashed, from the body":    {streams.Score, validated(), claim, stage.CauseCrash, validated},
		"unreadable, from the claim":       {streams.Score, "rubbish", claim, stage.CauseDecode, func() event.Validated { return only(event.Enriched{Submitted: validated().Submitted}) }},
		"unreadable, from its headers":     {streams.Enrich, "rubbish", nil, stage.CauseDecode, func() event.Validated { return only(event.Enriched{Submitted: headersOnly()}) }},
		"another's body, from the claim":   {streams.Score, another(), claim, stage.CauseReject, func() event.Validated { return only(event.Enriched{Submitted: validated().Submitted}) }},
		"a newer schema that kept killing": {streams.Score, `{"schema":2}`, claim, stage.CauseCrash, func() event.Validated { return only(event.Enriched{Submitted: validated().Submitted}) }},
	} {
		t.Run(name, func(t *testing.T) {
			m := message(t, tc.body)
			out, err := streams.Bury(tc.spec, tc.claim)(t.Context(), stage.Burial{Step: tc.spec.Step, Message: m, Cause: tc.cause, Err: errors.New("why\nso"), Attempts: 3})
			if err != nil || len(out) != 2 {
				t.Fatalf("%d outputs, %v", len(out), err)
			}
			checkLetter(t, out[0], tc.spec, tc.cause, m)
			fate := out[1]
			if fate.Subject != "tx.scored.acme" || fate.ID != "acme/ord-10023/buried/"+tc.spec.Step+"/2" {
				t.Errorf("fate: %s %s", fate.Subject, fate.ID)
			}
			if diff := cmp.Diff(ident().Header(), fate.Header); diff != "" {
				t.Errorf("fate's headers: %s", diff)
			}
			got, err := event.Decode[event.Scored](fate.Data)
			if err != nil {
				t.Fatal(err)
			}
			want := event.Scored{Validated: tc.want()}
			want.Verdict = txn.Verdict{Decision: txn.Review, Score: 50, RiskBand: "medium", RuleSet: want.RuleSet, Reasons: []txn.Reason{{Code: "PROCESSING_FAULT",
				Text: "could not be processed (" + tc.spec.Step + ": " + tc.cause + "), a person must look", Rule: "processing"}}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("fate: %s", diff)
			}
		})
	}
}

// only is an enriched event as it reads once it went over the wire.
func only(e event.Enriched) event.Validated {
	v := event.Validated{Enriched: e, Checks: []txn.Check{}}
	if v.Features == nil {
		v.Features, v.Degraded = map[string]event.Value{}, []string{}
	}
	return v
}

// headersOnly is what the headers alone tell of a transaction.
func headersOnly() event.Submitted {
	i := ident()
	return event.Submitted{Schema: event.Schema, Tenant: i.Tenant, ID: i.ID, Run: i.Run, ClaimedAt: txn.At(i.AcceptedAt), AcceptedAt: txn.At(i.AcceptedAt),
		Deadline: txn.At(i.Deadline), Digest: i.Digest, Tx: txn.Sealed{Blob: []byte{}}}
}

func another() event.Validated {
	v := validated()
	v.Tenant = "other"
	return v
}

func checkLetter(t *testing.T, letter stage.Output, spec stage.Spec, cause string, m stage.Message) {
	t.Helper()
	if want := "dlq." + spec.Step + "." + cause + ".acme"; letter.Subject != want {
		t.Errorf("letter to %s, want %s", letter.Subject, want)
	}
	if !slices.Equal(letter.Data, m.Data) {
		t.Errorf("letter holds %s", letter.Data)
	}
	want := ident().Header()
	for name, value := range map[string]string{"Step": spec.Step, "Cause": cause, "Stream": spec.Stream, "Sequence": "42", "Attempts": "3",
		"Subject": m.Subject, "Message-Id": m.Header.Get(nats.MsgIdHdr), "First-At": "1795388711500", "Detail": "why so"} {
		want.Set("Crivo-Dead-"+name, value)
	}
	if diff := cmp.Diff(want, letter.Header); diff != "" {
		t.Errorf("letter's headers: %s", diff)
	}
	if m.Header.Get(nats.MsgIdHdr) == "" || m.Header.Get(streams.HeaderStep) != "" {
		t.Errorf("the message's own headers were changed: %v", m.Header)
	}
}

func TestWhereNothingIsLeftToDecideALetterStandsAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		spec   stage.Spec
		header nats.Header
		tenant string
	}{
		"persist decides its own":         {streams.Persist, ident().Header(), "acme"},
		"notify's are decided":            {streams.Notify, ident().Header(), "acme"},
		"without identity":                {streams.Enrich, nil, "unknown"},
		"with half an identity":           {streams.Score, nats.Header{streams.HeaderTenant: {"acme"}}, "acme"},
		"with a tenant that is a subject": {streams.Score, nats.Header{streams.HeaderTenant: {"a.>"}, streams.HeaderID: {"1"}}, "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			m := message(t, "rubbish")
			m.Header = tc.header
			out, err := streams.Bury(tc.spec, claim)(t.Context(), stage.Burial{Step: tc.spec.Step, Message: m, Cause: stage.CauseDecode, Err: errors.New("x")})
			if err != nil || len(out) != 1 {
				t.Fatalf("%d outputs, %v", len(out), err)
			}
			if want := "dlq." + tc.spec.Step + ".decode." + tc.tenant; out[0].Subject != want {
				t.Errorf("letter to %s, want %s", out[0].Subject, want)
			}
			if string(out[0].Data) != "rubbish" {
				t.Errorf("letter holds %s", out[0].Data)
			}
		})
	}
}

func TestALettersDetailIsOneShortLine(t *testing.T) {
	m := message(t, "rubbish")
	for name, tc := range map[string]struct{ text, want string }{
		"line breaks":       {"a\r\nb\tc\x7f\u0085d", "a  b c  d"},
		"no UTF-8":          {"a\xffb", "a\uFFFDb"},
		"a long one":        {strings.Repeat("x", 5000), strings.Repeat("x", 1024)},
		"cut within a rune": {strings.Repeat("é", 600) + "", strings.Repeat("é", 512)},
		"an odd cut":        {"x" + strings.Repeat("é", 600), "x" + strings.Repeat("é", 511)},
	} {
		out, err := streams.Bury(streams.Notify, nil)(t.Context(), stage.Burial{Step: "notify", Message: m, Cause: stage.CauseReject, Err: errors.New(tc.text)})
		if err != nil {
			t.Fatal(err)
		}
		if got := out[0].Header.Get(streams.HeaderDetail); got != tc.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestLettersOfOneMessageHaveOneID(t *testing.T) {
	id := func(change func(*stage.Burial)) string {
		b := stage.Burial{Step: "score", Message: message(t, "rubbish"), Cause: stage.CauseDecode}
		change(&b)
		out, err := streams.Bury(streams.Score, nil)(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		return out[0].ID
	}
	first := id(func(*stage.Burial) {})
	if again := id(func(b *stage.Burial) { b.Attempts, b.Message.Deliveries = 9, 9 }); again != first {
		t.Errorf("%s and %s", first, again)
	}
	for name, change := range map[string]func(*stage.Burial){
		"another sequence":                       func(b *stage.Burial) { b.Message.Sequence++ },
		"the same sequence of a stream made new": func(b *stage.Burial) { b.Message.Stored = b.Message.Stored.Add(time.Hour) },
		"another step":                           func(b *stage.Burial) { b.Step = "validate" },
	} {
		if other := id(change); other == first {
			t.Errorf("%s: %s too", name, other)
		}
	}
}

func TestWithoutItsClaimABurialWaits(t *testing.T) {
	down := errors.New("down")
	_, err := streams.Bury(streams.Score, func(context.Context, streams.Ident) (event.Submitted, error) { return event.Submitted{}, down })(
		t.Context(), stage.Burial{Step: "score", Message: message(t, "rubbish"), Cause: stage.CauseDecode})
	if !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
}

func TestStepDecodesCallsAndAnnounces(t *testing.T) {
	bad := errors.New("bad")
	handle := streams.Step(streams.EventEnriched, 2, func(_ context.Context, in event.Submitted) (event.Enriched, error) {
		if in.Tx.Amount < 0 {
			return event.Enriched{}, stage.Unavailable(bad)
		}
		return event.Enriched{Submitted: in, RuleSet: txn.RuleSet{Version: 7}}, nil
	})
	negative := validated().Submitted
	negative.Tx.Amount = -1
	headless := message(t, validated().Submitted)
	headless.Header = nil
	got := handle(t.Context(), []stage.Message{message(t, validated().Submitted), message(t, "rubbish"), message(t, negative), headless, message(t, `{"schema":2}`)})
	for i, is := range []func(error) bool{func(err error) bool { return err == nil }, stage.IsUndecodable, stage.IsUnavailable, stage.IsUndecodable, stage.IsHold} {
		if !is(got[i].Err) || (got[i].Err == nil) != (len(got[i].Outputs) == 1) {
			t.Errorf("%d: %d outputs, %v", i, len(got[i].Outputs), got[i].Err)
		}
	}
	out := got[0].Outputs[0]
	if out.Subject != "tx.enriched.acme" || out.ID != "acme/ord-10023/enriched/2" {
		t.Errorf("%s %s", out.Subject, out.ID)
	}
	if diff := cmp.Diff(ident().Header(), out.Header); diff != "" {
		t.Error(diff)
	}
	if e, err := event.Decode[event.Enriched](out.Data); err != nil || e.RuleSet.Version != 7 || e.ID != "ord-10023" {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestARunnerTellsItsProcessWhyItIsNotReady(t *testing.T) {
	h := &app.Health{}
	r := streams.Runner(app.Shell{Health: h}, streams.Score, nil, nil)
	r.NotReady("why")
	if diff := cmp.Diff(map[string]string{"score": "why"}, h.Reasons()); diff != "" {
		t.Error(diff)
	}
}

func TestEveryServiceHasAnInboxOfItsOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, service := range streams.Services {
		_, subscribe := streams.Permissions(service)
		if inbox := streams.InboxPrefix(service) + ".>"; !slices.Contains(subscribe, inbox) || seen[inbox] {
			t.Errorf("%s: %v", service, subscribe)
		} else {
			seen[inbox] = true
		}
	}
}
