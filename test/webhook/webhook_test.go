// Package webhook_test holds our verifier of webhooks against the official Standard Webhooks library.
package webhook_test

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"crivo/pkg/webhook"
)

// Whatever stands around a signature, in its body or before its id, both libraries say the same of it.
func FuzzVerifyAgreesWithTheOfficialLibrary(f *testing.F) {
	const text = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	f.Add("msg_1", int64(1614265330), []byte(`{"test": 2432232314}`), "v1,", "")
	f.Add("msg_1", int64(-1), []byte("\xff"), "v1a,AAAA v1,bad= v1,", " v2,x")
	f.Add("", int64(0), []byte(nil), "v1 v1,", "=")
	f.Add("a.b", int64(1), []byte("."), "v1,,", ",")
	own, err := webhook.ParseSecret(text)
	if err != nil {
		f.Fatal(err)
	}
	official, err := standardwebhooks.NewWebhook(text)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, id string, seconds int64, body []byte, before, behind string) {
		at := time.Unix(seconds, 0)
		signature := webhook.Sign([]webhook.Secret{own}, id, at, body)[len("v1,"):]
		h := http.Header{webhook.HeaderID: {id}, webhook.HeaderTimestamp: {strconv.FormatInt(seconds, 10)}, webhook.HeaderSignature: {before + signature + behind}}
		ours, theirs := webhook.Verify(own, h, body, at), official.VerifyIgnoringTimestamp(body, h)
		if ours == nil && theirs != nil {
			t.Errorf("we took %v of %q, they say %v", h, body, theirs)
		}
		if plain := (before == "v1," || before == "v1a,AAAA v1,") && behind == ""; plain && id != "" && (ours != nil || theirs != nil) {
			t.Errorf("%v of %q: we say %v, they say %v", h, body, ours, theirs)
		}
	})
}
