package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"crivo/pkg/client"
	"crivo/pkg/txn"
)

// A payment is described, handed in, and decided on before it is made.
func Example() {
	crivo := &client.Client{URL: "https://crivo.example", Key: os.Getenv("CRIVO_API_KEY")}
	payer, err := txn.ParseDocument("529.982.247-25")
	if err != nil {
		log.Fatal(err)
	}
	payment := txn.Transaction{
		ID:        "ord-10023", // yours: the same again is the same transaction
		Type:      "pix",
		Amount:    13725, // R$ 137,25: whole minor units of the currency
		Currency:  "BRL",
		CreatedAt: txn.At(time.Now()),
		Payer:     txn.Party{Document: payer},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	decision, err := crivo.SubmitAndWait(ctx, payment)
	if err != nil {
		log.Fatal(err)
	}
	switch decision.Decision {
	case txn.Approve:
		fmt.Println("pay")
	case txn.Review:
		fmt.Println("hold, for", decision.Reasons[0].Text)
	case txn.Decline:
		fmt.Println("do not pay")
	}
}

// What went wrong tells what to do about it.
func ExampleClient_Submit() {
	crivo := &client.Client{URL: "https://crivo.example", Key: os.Getenv("CRIVO_API_KEY")}
	_, err := crivo.Submit(context.Background(), txn.Transaction{ID: "ord-10023"})
	var faults txn.Faults
	switch {
	case err == nil:
		fmt.Println("accepted: its decision comes by webhook")
	case errors.As(err, &faults):
		for _, f := range faults {
			fmt.Println(f.Pointer, f.Code, f.Detail)
		}
	case errors.Is(err, client.ErrConflict):
		fmt.Println("this id was another payment's")
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrRateLimited):
		fmt.Println("keep it and submit the same later")
	default:
		log.Fatal(err)
	}
}

func ExampleClient_Batch() {
	crivo := &client.Client{URL: "https://crivo.example", Key: os.Getenv("CRIVO_API_KEY")}
	outcomes, err := crivo.Batch(context.Background(), []txn.Transaction{{ID: "ord-1"}, {ID: "ord-2"}})
	if err != nil {
		log.Fatal(err)
	}
	for _, o := range outcomes {
		if o.Err != nil {
			fmt.Println(o.ID, o.Err)
		}
	}
}

// The review queue, oldest first.
func ExampleClient_Search() {
	crivo := &client.Client{URL: "https://crivo.example", Key: os.Getenv("CRIVO_API_KEY")}
	for s, err := range crivo.Search(context.Background(), client.Query{Disposition: "open", Order: "oldest"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(s.ID, s.AcceptedAt, s.Decision.Score)
	}
}

// Keep the ID of the last event that was worked off: after a restart it is where to go on.
func ExampleClient_Events() {
	crivo := &client.Client{URL: "https://crivo.example", Key: os.Getenv("CRIVO_API_KEY")}
	for event, err := range crivo.Events(context.Background(), os.Getenv("LAST_EVENT")) {
		if err != nil {
			log.Fatal(err)
		}
		decision, err := event.Decision()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(decision.ID, decision.Decision, event.ID)
	}
}

func ExampleVerifyWebhook() {
	http.HandleFunc("POST /hook", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, "body", http.StatusBadRequest) // without it the answer is 200: taken
			return
		}
		event, err := client.VerifyWebhook(os.Getenv("WEBHOOK_SECRET"), r.Header, body, time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		fmt.Println(event.ID, event.Type) // an ID that was seen before is the same event again
		w.WriteHeader(http.StatusNoContent)
	})
}

// A certificate of one's own.
func ExampleClient_certificate() {
	ca, err := os.ReadFile("ca.pem")
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	crivo := &client.Client{URL: "https://crivo.internal:8443", Key: os.Getenv("CRIVO_API_KEY"),
		HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 64}}}
	_, _ = crivo.Get(context.Background(), "ord-10023")
}

// By NATS a payment is a request and its acceptance the reply, of what HTTP would have answered. Without a reply nobody knows:
// the same is sent again.
func Example_nats() {
	nc, err := nats.Connect("nats://127.0.0.1:4222", nats.UserCredentials("crivo-data/nats.creds"))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	request := nats.NewMsg("tx.intake.default") // the last word is the tenant
	request.Header.Set("Prefer", "wait=2")      // as in HTTP; without it the reply comes once the payment is accepted
	request.Data = []byte(`{"id":"ord-10023","type":"pix","amount":13725,"currency":"BRL","created_at":"2026-11-22T23:05:11.120Z",` +
		`"payer":{"document":"529.982.247-25"}}`)
	reply, err := nc.RequestMsg(request, 5*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(reply.Data)) // {"status":200,"body":{"id":"ord-10023","status":"decided","decision":"approve",…}}
}
