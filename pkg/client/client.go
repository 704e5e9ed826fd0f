// Package client is crivo's HTTP API for whoever sends payments to it: a transaction in, its decision out, by waiting for it,
// by asking, by events or by webhook. What may be repeated safely, and everything here may, is repeated until it is answered
// or the context's deadline is near.
package client

import (
	"context"
	"fmt"
	"iter"
	"math"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"crivo/pkg/txn"
)

// Client speaks for one API key. It is ready as it is written down, and safe for use by many goroutines.
//
// A call ends with its context. Where that has no deadline, a call gives up what is not answered after a minute.
type Client struct {
	URL  string       // of the API, such as https://crivo.example
	Key  string       // its roles: submit for Submit, SubmitAndWait, Batch, DryRun; read for the others
	HTTP *http.Client // for certificates, proxies, traces; nil: a plain one. Redirects are not followed unless it says so
}

// State is where a transaction stands.
type State struct {
	ID         string
	AcceptedAt txn.Time      // zero where the answer does not say
	Decision   *txn.Decision // nil while it is processing
	Replayed   bool          // this was a repeat of what had been accepted before
	// Disposition is how an analyst closed a review: approved, declined, or "" while nobody did. Submit does not tell it.
	Disposition string
}

// UnmarshalJSON reads the answer for one transaction.
func (s *State) UnmarshalJSON(data []byte) error {
	var head struct {
		ID          string   `json:"id"`
		Status      string   `json:"status"`
		AcceptedAt  txn.Time `json:"accepted_at"`
		Disposition string   `json:"disposition"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	*s = State{ID: head.ID, AcceptedAt: head.AcceptedAt, Disposition: head.Disposition}
	switch head.Status {
	case "processing":
		return nil
	case "decided":
		s.Decision = new(txn.Decision)
		return json.Unmarshal(data, s.Decision)
	}
	return fmt.Errorf("neither processing nor decided")
}

// Submit hands in one transaction. It is accepted once there is no error: it will be decided, once, and told by webhook.
//
// The same again, at any time, is the same transaction: where Submit ends with ErrUnavailable or with the context, nobody knows
// whether it was accepted until the same is submitted again.
func (c *Client) Submit(ctx context.Context, tx txn.Transaction) (State, error) {
	return c.submit(ctx, tx, 0)
}

// SubmitAndWait hands in one transaction and returns its decision. Where it ends before that, the transaction may be accepted:
// Wait goes on waiting, and the same again does both.
func (c *Client) SubmitAndWait(ctx context.Context, tx txn.Transaction) (txn.Decision, error) {
	s, err := c.submit(ctx, tx, waitIn(ctx))
	switch {
	case err != nil:
		return txn.Decision{}, err
	case s.Decision != nil:
		return *s.Decision, nil
	}
	return c.Wait(ctx, tx.ID)
}

func (c *Client) submit(ctx context.Context, tx txn.Transaction, wait int) (s State, err error) {
	body, err := tx.MarshalClear()
	if err != nil {
		return s, fmt.Errorf("transaction: %w", err)
	}
	header, err := c.ask(ctx, request{method: http.MethodPost, path: "/v1/transactions", body: body, wait: wait}, &s)
	s.Replayed = header.Get("Idempotent-Replayed") == "true"
	return s, err
}

// Get returns where a transaction stands; ErrNotFound where there is none of this id.
func (c *Client) Get(ctx context.Context, id string) (State, error) { return c.get(ctx, id, 0) }

func (c *Client) get(ctx context.Context, id string, wait int) (s State, err error) {
	_, err = c.ask(ctx, request{method: http.MethodGet, path: "/v1/transactions/" + url.PathEscape(id), wait: wait}, &s)
	return s, err
}

// Wait returns the decision of a transaction once there is one; without a deadline it waits for as long as that takes.
func (c *Client) Wait(ctx context.Context, id string) (txn.Decision, error) {
	for {
		s, err := c.get(ctx, id, waitIn(ctx))
		switch {
		case err != nil:
			return txn.Decision{}, err
		case s.Decision != nil:
			return *s.Decision, nil
		}
		// The edge held the answer back. Something in between that does not let it must not be asked without a pause.
		if err := new(pace).rest(ctx, 0); err != nil {
			return txn.Decision{}, err
		}
	}
}

// waitIn is how many seconds an answer may be held back for the decision: ten at most, as the edge has it.
func waitIn(ctx context.Context) int {
	const most = 10
	if end, ok := ctx.Deadline(); ok {
		return int(min(most, math.Ceil(time.Until(end).Seconds())))
	}
	return most
}

// DryRun returns what would be decided about a transaction, and leaves no trace of it.
func (c *Client) DryRun(ctx context.Context, tx txn.Transaction) (d txn.Decision, err error) {
	body, err := tx.MarshalClear()
	if err != nil {
		return d, fmt.Errorf("transaction: %w", err)
	}
	_, err = c.ask(ctx, request{method: http.MethodPost, path: "/v1/transactions/dry-run", body: body}, &d)
	return d, err
}

// Query selects decided transactions; zero fields do not filter.
type Query struct {
	Document    string   `json:"document,omitzero"` // of payer or payee
	Account     Account  `json:"account,omitzero"`  // of payer or payee
	Decision    string   `json:"decision,omitzero"`
	Reason      string   `json:"reason,omitzero"`      // a code
	Disposition string   `json:"disposition,omitzero"` // open: what waits for an analyst; approved, declined
	From        txn.Time `json:"from,omitzero"`        // accepted then or later
	To          txn.Time `json:"to,omitzero"`          // accepted before
	Order       string   `json:"order,omitzero"`       // newest (first), oldest
	Limit       int      `json:"limit,omitzero"`       // of one page; the edge's own without it
}

// Account names an account, exactly as it was submitted.
type Account struct {
	ISPB   string `json:"ispb,omitzero"`
	Branch string `json:"branch,omitzero"`
	Number string `json:"number"`
}

// Search yields what q selects, page after page, and ends with the last or with an error.
func (c *Client) Search(ctx context.Context, q Query) iter.Seq2[State, error] {
	return func(yield func(State, error) bool) {
		for page := (searched{Next: new(string)}); page.Next != nil; {
			body, err := json.Marshal(struct {
				Query
				Cursor string `json:"cursor,omitzero"`
			}{q, *page.Next})
			if err == nil {
				page = searched{}
				_, err = c.ask(ctx, request{method: http.MethodPost, path: "/v1/transactions/search", body: body}, &page)
			}
			if err != nil {
				yield(State{}, err)
				return
			}
			for _, s := range page.Items {
				if !yield(s, nil) {
					return
				}
			}
		}
	}
}

type searched struct {
	Items []State `json:"items"`
	Next  *string `json:"next_cursor"` // nil on the last page
}

// Outcome is what became of one transaction of a batch: where it stands, or an *[Error] such as Submit gives.
type Outcome struct {
	State
	Err error // nil: accepted
}

// Batch hands in up to 1,000 transactions, 4 MiB of JSON, in one request, and returns their outcomes in the same order. Those
// for which there was no room are sent again, like a Submit is. An error is about all of them.
func (c *Client) Batch(ctx context.Context, txs []txn.Transaction) ([]Outcome, error) {
	bodies, left, out := make([]jsontext.Value, len(txs)), make([]int, len(txs)), make([]Outcome, len(txs))
	for i, tx := range txs {
		body, err := tx.MarshalClear()
		if err != nil {
			return nil, fmt.Errorf("transaction %d: %w", i, err)
		}
		bodies[i], left[i] = body, i
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	for p := new(pace); ; {
		if err := c.batch(ctx, bodies, left, out); err != nil {
			if len(left) == len(txs) {
				return nil, err
			}
			for _, i := range left { // what became of the others is known
				out[i].Err = err
			}
			return out, nil
		}
		var asked time.Duration
		left = slices.DeleteFunc(left, func(i int) bool {
			asked = max(asked, after(out[i].Err))
			out[i].ID = txs[i].ID
			return !mayRepeat(out[i].Err)
		})
		if len(left) == 0 || p.rest(ctx, asked) != nil {
			return out, nil
		}
	}
}

// batch sends those of bodies that are left and puts down what became of each.
func (c *Client) batch(ctx context.Context, bodies []jsontext.Value, left []int, out []Outcome) error {
	sent := make([]jsontext.Value, len(left))
	for n, i := range left {
		sent[n] = bodies[i]
	}
	body, err := json.Marshal(sent)
	if err != nil {
		return fmt.Errorf("batch: %w", err)
	}
	var said struct {
		Items []struct {
			Index    int    `json:"index"`
			Body     State  `json:"body"` // where it is decided
			Replayed bool   `json:"idempotent_replayed"`
			Retry    uint32 `json:"retry_after"` // seconds
			Problem  Error  `json:",embed"`
		} `json:"items"`
	}
	if _, err := c.ask(ctx, request{method: http.MethodPost, path: "/v1/transactions/batch", body: body}, &said); err != nil {
		return err
	}
	if len(said.Items) != len(left) {
		return fmt.Errorf("a batch of %d was answered for %d", len(left), len(said.Items))
	}
	for n, item := range said.Items {
		if item.Index != n {
			return fmt.Errorf("number %d of a batch was answered as number %d", n, item.Index)
		}
		o := Outcome{State: item.Body}
		if o.Replayed = item.Replayed; item.Problem.Status/100 != 2 {
			item.Problem.RetryAfter = time.Duration(item.Retry) * time.Second
			o.Err = &item.Problem
		}
		out[left[n]] = o
	}
	return nil
}
