// Command receiver takes webhooks: WEBHOOK_SECRET=whsec_… receiver 127.0.0.1:9000
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"crivo/pkg/client"
)

func main() {
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
		fmt.Println(event.ID, event.Type, string(event.Data)) // an ID that was seen before is the same event again
		w.WriteHeader(http.StatusNoContent)
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
