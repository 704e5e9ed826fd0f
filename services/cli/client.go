package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"crivo/services/config"
)

// server is how a command reaches a running system.
type server struct {
	URL  string `help:"Where the API is." default:"http://127.0.0.1:8080"`
	JSON bool   `help:"Print the answer as JSON." name:"json"`
}

// Check finds a wrong address.
func (s *server) Check() config.Faults {
	var f config.Faults
	checkURL(&f, s.URL)
	return f
}

// checkURL finds an address that no request can be sent to.
func checkURL(f *config.Faults, address string) { checkAddress(f, "url", address) }

func checkAddress(f *config.Faults, name, address string) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		f.Add(name, "%q is no address such as http://127.0.0.1:8080", address)
	}
}

// apiKey is what CRIVO_API_KEY says, else the file that CRIVO_API_KEY_FILE names, else the key in ./crivo-data.
func apiKey() (string, error) {
	if key := os.Getenv(config.Env(keyFile)); key != "" {
		return key, nil
	}
	path := os.Getenv(config.Env(keyFile) + "_FILE")
	if path == "" {
		path = filepath.Join("crivo-data", keyFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("no API key: set CRIVO_API_KEY, or CRIVO_API_KEY_FILE to the file that holds it (%w)", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// ask sends one request with the caller's key and reads the answer into out, which may be nil.
func (s server) ask(ctx context.Context, method, path string, in, out any) error {
	key, err := apiKey()
	if err != nil {
		return usage(err)
	}
	var body []byte
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return call(ctx, direct, method, strings.TrimRight(s.URL, "/")+path, key, body, out)
}

// stay follows no redirect: a redirected POST or DELETE would arrive as a GET, whose answer says nothing of what was asked for. The
// address is wrong, and that is an answer.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

var direct = &http.Client{CheckRedirect: stay}

// send sends one request. An answer other than 2xx becomes an error that says what the problem document says, an errStream unless
// another try may fare better; any other is the caller's to read and close.
func send(ctx context.Context, client *http.Client, method, address, key string, body []byte, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, usage(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Accept", accept)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := client.Do(req)
	if err != nil || res.StatusCode < 300 {
		return res, err
	}
	defer res.Body.Close()
	p := problem{Title: res.Status}
	if data, err := io.ReadAll(io.LimitReader(res.Body, mostAnswer)); err == nil {
		_ = json.Unmarshal(data, &p)
	}
	if (answer{status: res.StatusCode}).final() {
		return nil, errStream{p}
	}
	return nil, errors.New(p.String())
}

// mostAnswer bounds an answer that is read whole. The largest are 500 deliveries whose ten attempts keep 4 KiB each, 20 MiB in all.
const mostAnswer = 64 << 20

// call is send for an answer that is read whole, into out, which may be nil.
func call(ctx context.Context, client *http.Client, method, address, key string, body []byte, out any) error {
	res, err := send(ctx, client, method, address, key, body, "application/json")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, mostAnswer))
	if err != nil {
		return err
	}
	if out == nil || len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("answer %d is not what was expected: %w", res.StatusCode, err)
	}
	return nil
}

// errSilent ends what nothing came of for as long as silence.
var errSilent = fmt.Errorf("the server said nothing for %s", silence)

// pour is send for the answer to a POST that goes out as it comes, however long it is. One that breaks, or falls silent, is an error.
func pour(ctx context.Context, client *http.Client, address, key string, body []byte, accept string, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer silent.Stop()
	why := func(err error) error {
		if errors.Is(context.Cause(ctx), errSilent) {
			return errSilent
		}
		return err
	}
	res, err := send(ctx, client, http.MethodPost, address, key, body, accept)
	if err != nil {
		return why(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(out, awaited{res.Body, silent}); err != nil {
		return fmt.Errorf("broken off, what was printed is not all: %w", why(err))
	}
	return nil
}

// awaited has a timer run while something is read. What a slow printer takes is nobody's silence.
type awaited struct {
	io.Reader
	silent *time.Timer
}

func (a awaited) Read(p []byte) (int, error) {
	a.silent.Reset(silence)
	defer a.silent.Stop()
	return a.Reader.Read(p)
}

// call sends one request that is not about a transaction.
func (s *sender) call(ctx context.Context, method, path string, body []byte, out any) error {
	return call(ctx, s.http, method, s.url+path, s.key, body, out)
}
