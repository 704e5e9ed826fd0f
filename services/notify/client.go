package notify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"code.dny.dev/ssrf"

	"crivo/pkg/retry"
	"crivo/pkg/webhook"
	"crivo/services/store"
)

// maxResponse is how much of an answer is kept, and how much of it is read.
const maxResponse = 4 << 10

var errBlocked = errors.New("address is not allowed")

// client posts webhooks. Where a name leads is judged at every dial, after DNS; redirects are never followed, proxies of the
// environment never used, certificates always verified.
type client struct {
	secure  *http.Client // https
	plain   *http.Client // http, to the operator's own addresses only
	timeout time.Duration
	agent   string
}

func newClient(cfg Config) *client {
	return &client{secure: httpClient(cfg.Resolver, public(cfg.Allow)), plain: httpClient(cfg.Resolver, private(cfg.Allow)), timeout: cfg.Timeout, agent: "crivo/" + cfg.Version}
}

type control = func(network, address string, c syscall.RawConn) error

// public lets a dial through to public addresses on port 443, and to the operator's own.
func public(allow []netip.Prefix) control {
	guard := ssrf.New(ssrf.WithPorts(443))
	return func(network, address string, c syscall.RawConn) error {
		if own(allow, address) || guard.Safe(network, address, c) == nil {
			return nil
		}
		return errBlocked
	}
}

// private lets a dial through to the operator's own addresses alone.
func private(allow []netip.Prefix) control {
	return func(_, address string, _ syscall.RawConn) error {
		if own(allow, address) {
			return nil
		}
		return errBlocked
	}
}

func own(allow []netip.Prefix, address string) bool {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return false
	}
	a := ap.Addr().Unmap().WithZone("") // a zoned or mapped form is contained in no prefix
	for _, p := range allow {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func httpClient(names *net.Resolver, guard control) *http.Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second, Resolver: names, Control: guard}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{Proxy: nil, DialContext: dialer.DialContext, TLSHandshakeTimeout: 5 * time.Second,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, DisableCompression: true, MaxIdleConns: 1024,
			MaxIdleConnsPerHost: laneWorkers, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10},
	}
}

// outcome is what one attempt came to; status 0 means that no answer came.
type outcome struct {
	status     int
	retryAfter time.Duration
	attempt    store.Attempt
}

// post makes one request: one record is one request.
func (c *client) post(ctx context.Context, e store.Endpoint, secrets []webhook.Secret, row store.Delivery, now time.Time) outcome {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var phases phases
	start := time.Now()
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, phases.trace()), http.MethodPost, e.URL, bytes.NewReader(row.Body))
	if err != nil {
		return outcome{attempt: store.Attempt{Error: "url"}}
	}
	for name, value := range e.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set(webhook.HeaderID, row.WebhookID)
	req.Header.Set(webhook.HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(webhook.HeaderSignature, webhook.Sign(secrets, row.WebhookID, now, row.Body))
	use := c.secure
	if req.URL.Scheme == "http" {
		use = c.plain
	}
	res, err := use.Do(req)
	var out outcome
	if err != nil {
		out.attempt.Error = class(err)
	} else {
		// Whatever an answer's body is, it ends with the attempt.
		defer context.AfterFunc(ctx, func() { _ = res.Body.Close() })()
		out = read(res, e.Headers, now)
	}
	phases.fill(&out.attempt)
	out.attempt.DurationMS = time.Since(start).Milliseconds()
	return out
}

// read takes what is kept of an answer to a request with these headers, and closes it. The connection can be used again where
// that was all.
func read(res *http.Response, headers map[string]string, now time.Time) outcome {
	defer res.Body.Close()
	var kept []byte
	if res.StatusCode != http.StatusSwitchingProtocols { // its body is the bare connection, which heeds no deadline
		// An error here changes nothing: the status stands, whatever became of the answer's body.
		kept, _ = io.ReadAll(io.LimitReader(res.Body, maxResponse))
	}
	out := outcome{status: res.StatusCode, retryAfter: retry.After(res.Header.Get("Retry-After"), now)}
	out.attempt.Status = res.StatusCode
	out.attempt.Response = strings.ToValidUTF8(mask(string(kept), headers), "?") // one byte each: what is kept must not grow
	switch res.StatusCode / 100 {
	case 2:
	case 3:
		out.attempt.Error = "redirect"
	default:
		out.attempt.Error = "status"
	}
	return out
}

// masked is how long a word of a header must be to be taken for a secret.
const masked = 8

// quotings are how an answer may spell a word: as it is, in JSON, and in JSON as PHP and Go write it.
var quotings = []*strings.Replacer{
	strings.NewReplacer(),
	strings.NewReplacer(`"`, `\"`, `\`, `\\`),
	strings.NewReplacer(`"`, `\"`, `\`, `\\`, `/`, `\/`),
	strings.NewReplacer(`"`, `\"`, `\`, `\\`, `&`, `\u0026`, `<`, `\u003c`, `>`, `\u003e`),
}

// spellings are those of every word that may be a secret, the longest first, as one may hold another.
func spellings(headers map[string]string) []string {
	var out []string
	for _, value := range headers {
		for word := range strings.FieldsSeq(value) {
			if len(word) < masked {
				continue
			}
			for _, quoting := range quotings {
				out = append(out, quoting.Replace(word))
			}
		}
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return slices.Compact(out)
}

// mask hides what an endpoint's own headers hold, such as its credential, from an answer that quotes the request, and also from
// one that ends amid it. It never lengthens an answer.
func mask(response string, headers map[string]string) string {
	all := spellings(headers)
	if n := begun(response, all); n >= masked { // first, before a shorter word takes away its beginning
		response = response[:len(response)-n] + "***"
	}
	for _, s := range all {
		response = strings.ReplaceAll(response, s, "***")
	}
	return response
}

// begun is the length of the longest of a text's endings that one of all begins with.
func begun(text string, all []string) int {
	most := 0
	for _, s := range all {
		for n := min(len(s), len(text)); n > most; n-- {
			if strings.HasSuffix(text, s[:n]) {
				most = n
			}
		}
	}
	return most
}

// class names an error without its text, which may quote what the receiver sent.
func class(err error) string {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case errors.Is(err, errBlocked):
		return "blocked"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "timeout"
	case errors.As(err, &dns):
		return "dns"
	case errors.As(err, &certificate), errors.As(err, &record):
		return "tls"
	case errors.As(err, &op) && op.Op == "dial":
		return "connect"
	case errors.As(err, &op):
		return "connection"
	}
	return "protocol"
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// phases notes when the parts of a request began and ended. The transport may still call back after a request was given up,
// so it is guarded.
type phases struct {
	mu    sync.Mutex
	times [8]time.Time
}

const (
	dnsStart = iota
	dnsDone
	dialStart
	dialDone
	tlsStart
	tlsDone
	wrote
	firstByte
)

func (p *phases) mark(which int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.times[which] = time.Now()
}

func (p *phases) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		DNSStart:             func(httptrace.DNSStartInfo) { p.mark(dnsStart) },
		DNSDone:              func(httptrace.DNSDoneInfo) { p.mark(dnsDone) },
		ConnectStart:         func(string, string) { p.mark(dialStart) },
		ConnectDone:          func(string, string, error) { p.mark(dialDone) },
		TLSHandshakeStart:    func() { p.mark(tlsStart) },
		TLSHandshakeDone:     func(tls.ConnectionState, error) { p.mark(tlsDone) },
		WroteRequest:         func(httptrace.WroteRequestInfo) { p.mark(wrote) },
		GotFirstResponseByte: func() { p.mark(firstByte) },
	}
}

func (p *phases) fill(a *store.Attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	span := func(from, to int) int64 {
		if p.times[from].IsZero() || p.times[to].Before(p.times[from]) {
			return 0
		}
		return p.times[to].Sub(p.times[from]).Milliseconds()
	}
	a.DNSMS, a.ConnectMS, a.TLSMS, a.FirstByteMS = span(dnsStart, dnsDone), span(dialStart, dialDone), span(tlsStart, tlsDone), span(wrote, firstByte)
}
