package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/schema_validation"
	"github.com/pb33f/libopenapi/datamodel/high/base"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"
)

// contract is the served document, and which of its operations were seen to succeed.
type contract struct {
	model     *v3.Document
	mu        sync.Mutex // the validator keeps caches
	validator validator.Validator
	succeeded map[string]bool // METHOD path
}

func readContract(url string) (*contract, error) {
	res, err := http.Get(url + "/openapi.json")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	doc, err := libopenapi.NewDocument(data)
	if err != nil {
		return nil, fmt.Errorf("openapi.json: %w", err)
	}
	model, err := doc.BuildV3Model()
	if err != nil {
		return nil, fmt.Errorf("openapi.json: %w", err)
	}
	v, errs := validator.NewValidator(doc, config.WithFormatAssertions())
	if len(errs) > 0 {
		return nil, fmt.Errorf("openapi.json: %v", errs)
	}
	return &contract{model: &model.Model, validator: v, succeeded: map[string]bool{}}, nil
}

// operations calls do for every one that is described.
func (c *contract) operations(do func(method, path string)) {
	for path, item := range c.model.Paths.PathItems.FromOldest() {
		for method := range item.GetOperations().FromOldest() {
			do(strings.ToUpper(method), path)
		}
	}
}

// unseen lists operations that no answer 2xx came from.
func (c *contract) unseen() (out []string) {
	c.operations(func(method, path string) {
		if !c.succeeded[method+" "+path] {
			out = append(out, method+" "+path)
		}
	})
	return out
}

// described returns the path of the document that a request is for, and the methods that it has there.
func (c *contract) described(method, path string) (template string, methods []string) {
	parts := strings.Split(path, "/")
	c.operations(func(m, candidate string) {
		if want := strings.Split(candidate, "/"); !slices.EqualFunc(want, parts, func(a, b string) bool { return a == b || strings.HasPrefix(a, "{") && b != "" }) {
			return
		}
		if methods = append(methods, m); template == "" || m == method && template != path {
			template = candidate // …/redrive is not an {id}
		}
	})
	return template, methods
}

// check holds a pair against the document. An answer to what the document does not describe, 404 or 405, is held against a
// neighbour's. A request is held against it only where it was taken: the others are wrong on purpose.
func (c *contract) check(method, path, body string, header http.Header, a answer) error {
	plain, _, _ := strings.Cut(path, "?")
	template, methods := c.described(method, plain)
	switch {
	case template == "" && a.status == http.StatusNotFound:
		method, path = http.MethodGet, "/v1/transactions/x"
	case template != "" && a.status == http.StatusMethodNotAllowed && !slices.Contains(methods, method):
		method = methods[0]
	case !slices.Contains(methods, method):
		return fmt.Errorf("not described, and answered with %d", a.status)
	}
	req, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header.Clone()
	req.Header.Del("Content-Encoding")
	res := &http.Response{StatusCode: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body))}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.status/100 != 2 {
		_, errs := c.validator.ValidateHttpResponse(req, res)
		return told(errs)
	}
	c.succeeded[method+" "+template] = true
	_, errs := c.validator.ValidateHttpRequestResponse(req, res)
	return told(errs)
}

// told joins what a validator found.
func told(errs []*errors.ValidationError) error {
	if len(errs) == 0 {
		return nil
	}
	var b strings.Builder
	for _, e := range errs {
		fmt.Fprintf(&b, "%s: %s\n", e.Message, e.Reason)
		for _, s := range e.SchemaValidationErrors {
			fmt.Fprintf(&b, "  %s %s\n", s.FieldPath, s.Reason)
		}
	}
	return fmt.Errorf("%s", b.String())
}

// checkWebhook holds a delivered body against one of the component schemas.
func (c *contract) checkWebhook(schema string, body []byte) error {
	proxy, ok := c.model.Components.Schemas.Get(schema)
	if !ok {
		return fmt.Errorf("no schema %s", schema)
	}
	return c.checkSchema(proxy, body)
}

// checkDelivery holds a webhook as it came against what the document says of its type.
func (c *contract) checkDelivery(w webhook) error {
	var event struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(w.body, &event); err != nil {
		return err
	}
	item, ok := c.model.Webhooks.Get(event.Type)
	if !ok {
		return fmt.Errorf("no webhook %q", event.Type)
	}
	for _, p := range item.Post.Parameters {
		text := w.header.Get(p.Name)
		value, err := json.Marshal(text)
		if slices.Contains(p.Schema.Schema().Type, "integer") {
			value = []byte(text)
		}
		if err == nil {
			err = c.checkSchema(p.Schema, value)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	media, ok := item.Post.RequestBody.Content.Get(w.header.Get("Content-Type"))
	if !ok {
		return fmt.Errorf("content type %s", w.header.Get("Content-Type"))
	}
	return c.checkSchema(media.Schema, w.body)
}

func (c *contract) checkSchema(proxy *base.SchemaProxy, value []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, errs := schema_validation.NewSchemaValidator(config.WithFormatAssertions()).ValidateSchemaBytes(proxy.Schema(), value)
	return told(errs)
}

// client speaks for one key; the document is held against everything that it hears.
type client struct{ url, key, tenant string }

// answer is what the program said.
type answer struct {
	status int
	header http.Header
	body   []byte
	// repeats counts 503 before it: what was claimed by then is rightly called a repeat.
	repeats int
}

// replayed tells whether the edge calls this a repeat.
func (a answer) replayed() bool {
	return a.header.Get("Idempotent-Replayed") == "true" && a.repeats == 0
}

// want ends the test unless the status is as wanted.
func (a answer) want(t *testing.T, status int) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("got %d %s, want %d", a.status, a.body, status)
	}
	return a
}

// accepted ends the test unless the transaction is taken: decided by now, where a 503 came before.
func (a answer) accepted(t *testing.T) answer {
	t.Helper()
	if a.status == http.StatusOK && a.repeats > 0 {
		return a
	}
	return a.want(t, http.StatusAccepted)
}

// text is one member of the answer as text, empty when there is none.
func (a answer) text(member string) string {
	var m map[string]any
	if json.Unmarshal(a.body, &m) != nil || m[member] == nil {
		return ""
	}
	return fmt.Sprint(m[member])
}

// problem checks that this is a whole problem document of the status and the kind.
func (a answer) problem(t *testing.T, status int, slug string) answer {
	t.Helper()
	if a.status != status || a.header.Get("Content-Type") != "application/problem+json" || a.text("type") != "urn:crivo:"+slug {
		t.Fatalf("got %d %s %s, want problem %d %s", a.status, a.header.Get("Content-Type"), a.body, status, slug)
	}
	if a.text("status") != strconv.Itoa(status) || a.text("request_id") == "" || a.text("request_id") != a.header.Get("X-Request-Id") {
		t.Errorf("status or request id do not agree: %v %s", a.header, a.body)
	}
	return a
}

// faults returns "pointer code" of each.
func (a answer) faults(t *testing.T) []string {
	t.Helper()
	var p struct {
		Errors []struct{ Pointer, Code string } `json:"errors"`
	}
	if err := json.Unmarshal(a.body, &p, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range p.Errors {
		out = append(out, e.Pointer+" "+e.Code)
	}
	slices.Sort(out)
	return out
}

var sockets = &http.Client{Timeout: within, Transport: &http.Transport{MaxIdleConns: 256, MaxIdleConnsPerHost: 256}}

// sendOnce sends one request as it is; plain is its body as the document knows it, without coding.
func (c client) sendOnce(t *testing.T, method, path string, body io.Reader, plain string, headers ...string) answer {
	t.Helper()
	a, header, err := c.exchange(method, path, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	if err := document.check(method, path, plain, header, a); err != nil {
		t.Errorf("%s %s: %d %s\nagainst the document: %v", method, path, a.status, a.body, err)
	}
	return a
}

// send is sendOnce, patiently.
func (c client) send(t *testing.T, method, path string, body io.ReadSeeker, plain string, headers ...string) answer {
	t.Helper()
	return patient(t, func() answer {
		if body == nil {
			return c.sendOnce(t, method, path, nil, plain, headers...)
		}
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		return c.sendOnce(t, method, path, body, plain, headers...)
	})
}

func (c client) exchange(method, path string, body io.Reader, headers ...string) (answer, http.Header, error) {
	req, err := http.NewRequest(method, c.url+path, body)
	if err != nil {
		return answer{}, nil, err
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := sockets.Do(req)
	if err != nil {
		return answer{}, nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return answer{status: res.StatusCode, header: res.Header, body: data}, req.Header, err
}

// patient asks again when a 503 says so, as a client does: this machine may be slower than the edge's budgets.
func patient(t *testing.T, ask func() answer) answer {
	t.Helper()
	for repeats := 0; ; repeats++ {
		a := ask()
		if a.repeats = repeats; a.status != http.StatusServiceUnavailable || repeats == 20 {
			return a
		}
		wait, err := strconv.Atoi(a.header.Get("Retry-After"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(wait) * time.Second)
	}
}

// post sends JSON; an empty value takes a header away.
func (c client) post(t *testing.T, path, body string, headers ...string) answer {
	t.Helper()
	return c.send(t, http.MethodPost, path, strings.NewReader(body), body, headers...)
}

func (c client) submit(t *testing.T, body string, headers ...string) answer {
	t.Helper()
	return c.post(t, "/v1/transactions", body, headers...)
}

func (c client) get(t *testing.T, path string, headers ...string) answer {
	t.Helper()
	return c.send(t, http.MethodGet, path, nil, "", headers...)
}

// decided submits and returns the decision.
func (c client) decided(t *testing.T, body string) answer {
	t.Helper()
	return c.submit(t, body, "Prefer", "wait=10").want(t, http.StatusOK)
}
