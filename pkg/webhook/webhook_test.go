package webhook_test

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"crivo/pkg/webhook"
)

const (
	vectorSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	vectorID     = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorBody   = `{"test": 2432232314}`
	vectorMAC    = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

var vectorTime = time.Unix(1614265330, 0)

func parse(t testing.TB, text string) webhook.Secret {
	t.Helper()
	s, err := webhook.ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestW01ThePublishedVector(t *testing.T) {
	if got := webhook.Sign([]webhook.Secret{parse(t, vectorSecret)}, vectorID, vectorTime, []byte(vectorBody)); got != vectorMAC {
		t.Errorf("got %s", got)
	}
}

func headers(id string, at time.Time, signature string) http.Header {
	return http.Header{webhook.HeaderID: {id}, webhook.HeaderTimestamp: {strconv.FormatInt(at.Unix(), 10)}, webhook.HeaderSignature: {signature}}
}

func TestVerify(t *testing.T) {
	for name, tc := range map[string]struct {
		h    http.Header
		body string
		late time.Duration
		want error
	}{
		"as it came":                  {headers(vectorID, vectorTime, vectorMAC), vectorBody, 0, nil},
		"one byte flipped":            {headers(vectorID, vectorTime, vectorMAC), `{"test": 2432232315}`, 0, webhook.ErrSignature},
		"another id":                  {headers("msg_x", vectorTime, vectorMAC), vectorBody, 0, webhook.ErrSignature},
		"another time":                {headers(vectorID, vectorTime.Add(time.Second), vectorMAC), vectorBody, 0, webhook.ErrSignature},
		"six minutes old":             {headers(vectorID, vectorTime, vectorMAC), vectorBody, 6 * time.Minute, webhook.ErrTimestamp},
		"six minutes ahead":           {headers(vectorID, vectorTime, vectorMAC), vectorBody, -6 * time.Minute, webhook.ErrTimestamp},
		"among others, v1a first":     {headers(vectorID, vectorTime, "v1a,AAAA v1,bad= "+vectorMAC), vectorBody, 0, nil},
		"other text, same bytes":      {headers(vectorID, vectorTime, vectorMAC[:9]+"\n"+vectorMAC[9:]), vectorBody, 0, webhook.ErrSignature},
		"no signature":                {headers(vectorID, vectorTime, ""), vectorBody, 0, webhook.ErrHeaders},
		"no id":                       {headers("", vectorTime, vectorMAC), vectorBody, 0, webhook.ErrHeaders},
		"a timestamp with a fraction": {http.Header{webhook.HeaderID: {"a"}, webhook.HeaderTimestamp: {"1.5"}, webhook.HeaderSignature: {"v1,x"}}, "", 0, webhook.ErrHeaders},
	} {
		t.Run(name, func(t *testing.T) {
			if err := webhook.Verify(parse(t, vectorSecret), tc.h, []byte(tc.body), vectorTime.Add(tc.late)); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestW03TwoSecretsBothVerify(t *testing.T) {
	old, next := webhook.NewSecret(), webhook.NewSecret()
	signature := webhook.Sign([]webhook.Secret{next, old}, "msg_1", vectorTime, []byte("{}"))
	if strings.Count(signature, " ") != 1 || strings.Contains(signature, "  ") {
		t.Errorf("%q", signature)
	}
	for _, s := range []webhook.Secret{old, next} {
		if err := webhook.Verify(s, headers("msg_1", vectorTime, signature), []byte("{}"), vectorTime); err != nil {
			t.Error(err)
		}
	}
}

func TestSecrets(t *testing.T) {
	s := webhook.NewSecret()
	if again := parse(t, s.Reveal()); again.Reveal() != s.Reveal() || strings.Contains(s.Reveal(), "=") {
		t.Error(s.Reveal())
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if out := fmt.Sprintf(verb, s); out != "whsec_***" {
			t.Errorf("%s prints %s", verb, out)
		}
	}
	for _, bad := range []string{"", "whsec_", "whsec_AAAA", strings.TrimPrefix(vectorSecret, "whsec_"), "whsec_" + strings.Repeat("-", 32)} {
		if _, err := webhook.ParseSecret(bad); !errors.Is(err, webhook.ErrSecret) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(vectorID, "1614265330", vectorMAC, []byte(vectorBody))
	f.Add("", "x", " v1, ,", []byte(nil))
	s := parse(f, vectorSecret)
	f.Fuzz(func(t *testing.T, id, at, signature string, body []byte) {
		h := http.Header{webhook.HeaderID: {id}, webhook.HeaderTimestamp: {at}, webhook.HeaderSignature: {signature}}
		err := webhook.Verify(s, h, body, vectorTime)
		if err == nil && !strings.Contains(signature, strings.TrimPrefix(webhook.Sign([]webhook.Secret{s}, id, vectorTime, body), "v1,")) && at == "1614265330" {
			t.Errorf("verified %q", signature)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	s := []webhook.Secret{webhook.NewSecret()}
	body := make([]byte, 1024)
	for b.Loop() {
		webhook.Sign(s, "msg_1", vectorTime, body)
	}
}
