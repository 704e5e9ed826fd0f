package edge_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"crivo/pkg/txn"
	"crivo/services/lists"
	"crivo/services/store"
	"crivo/streams"
)

const entries = "/v1/lists/block/entries"

func TestAnEntryIsKeptAsATokenRecordedAndAnnounced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	nc := r.connect()
	heard, err := nc.SubscribeSync("control." + streams.TopicLists)
	if err != nil || nc.Flush() != nil {
		t.Fatal(err)
	}
	announced := func() {
		t.Helper()
		if _, err := heard.NextMsg(within); err != nil {
			t.Fatal(err)
		}
	}
	expires := r.clock.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000Z")
	made := e.made(entries, `{"kind":"document","value":"529.982.247-25","reason":"fraud","expires_at":"`+expires+`"}`)
	announced()
	want := fmt.Sprintf(`{"id":%q,"list":"block","kind":"document","reason":"fraud","added_by":"key_bootstrap","created_at":%q,"expires_at":%q}`,
		made.member("id"), made.member("created_at"), expires)
	if made.body != want {
		t.Errorf("got %s, want %s", made.body, want)
	}
	// The same by another spelling is the same entry, and now without an end.
	again := e.made(entries, `{"kind":"document","value":"52998224725","reason":"theft"}`)
	announced()
	if again.member("id") != made.member("id") || again.member("reason") != "theft" || again.member("expires_at") != "" {
		t.Errorf("again: %s", again.body)
	}
	kept, err := r.registry.ListEntries(t.Context())
	if err != nil || len(kept) != 1 {
		t.Fatalf("%+v, %v", kept, err)
	}
	tx, err := txn.Decode([]byte(r.payment("x")), r.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	box, err := r.keys.Box("default")
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := txn.Seal(box, "default", tx)
	if err != nil || !slices.Contains(lists.Marks(sealed), lists.Mark{Kind: kept[0].Kind, Shown: kept[0].Value}) {
		t.Errorf("no transaction of it shows %+v, %v", kept[0], err)
	}
	if a := e.do(http.MethodDelete, entries+"/"+made.member("id"), ""); a.status != http.StatusNoContent {
		t.Errorf("delete: %d %s", a.status, a.body)
	}
	announced()
	if a := e.do(http.MethodDelete, entries+"/"+made.member("id"), ""); a.status != http.StatusNotFound {
		t.Errorf("delete again: %d %s", a.status, a.body)
	}
	for _, none := range []string{"529.982.247-25", "ent_52998224725", made.member("id") + "/52998224725"} { // nor on record, below
		if a := e.do(http.MethodDelete, entries+"/"+strings.ReplaceAll(none, "/", "%2F"), ""); a.status != http.StatusNotFound || a.slug() != "not-found" {
			t.Errorf("delete %s: %d %s", none, a.status, a.body)
		}
	}
	acts, err := r.registry.Acts(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	var recorded []string
	for _, a := range acts {
		recorded = append(recorded, fmt.Sprint(a.Action, " ", a.Target, " ", a.Detail))
	}
	id := made.member("id")
	if diff := cmp.Diff([]string{"list.remove " + id + " map[list:block]", "list.remove " + id + " map[list:block]",
		"list.add " + id + " map[kind:document list:block]", "list.add " + id + " map[kind:document list:block]"}, recorded); diff != "" {
		t.Error(diff)
	}
}

func TestEntriesArePagedWithoutTheirValues(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	want := []string{}
	for n := range 5 {
		want = append(want, e.made(entries, fmt.Sprintf(`{"kind":"merchant_id","value":"CANARY-%d"}`, n)).member("id"))
	}
	slices.Reverse(want)
	type page struct {
		Items []store.ListEntry `json:"items"`
		Next  string            `json:"next_cursor"`
	}
	var seen []string
	for cursor := ""; ; {
		a := e.do(http.MethodGet, entries+"?limit=2&cursor="+cursor, "")
		if a.status != http.StatusOK || strings.Contains(a.body, "CANARY") {
			t.Fatalf("%d %s", a.status, a.body)
		}
		p := decode[page](t, a.body)
		for _, x := range p.Items {
			seen = append(seen, x.ID)
		}
		if cursor = p.Next; cursor == "" {
			break
		}
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Error(diff)
	}
	for path, status := range map[string]int{entries + "?cursor=!": 400, entries + "?limit=0": 422, "/v1/lists/allow/entries": 404} {
		if a := e.do(http.MethodGet, path, ""); a.status != status || a.slug() == "" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := e.do(http.MethodDelete, "/v1/lists/allow/entries/"+want[0], ""); a.status != http.StatusNotFound {
		t.Errorf("of another list: %d %s", a.status, a.body)
	}
}

func TestVersionsOfRuleSetsAreShown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	e := r.edge("a")
	set := store.RuleSet{Name: "default", Version: 7, Digest: "sha256:x", Source: []byte("name: default # é\n"), CreatedAt: txn.At(r.clock.Now())}
	if err := r.registry.PutRuleSet(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if a := e.do(http.MethodGet, "/v1/rule-sets", ""); a.status != http.StatusOK || !strings.Contains(a.body, `"name":"default","version":7`) || strings.Contains(a.body, "source") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := e.do(http.MethodGet, "/v1/rule-sets/default/7", ""); a.status != http.StatusOK || a.member("source") != string(set.Source) || a.member("digest") != set.Digest {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, path := range []string{"/default/8", "/other/7", "/default/x", "/default/99999999999999999999"} {
		if a := e.do(http.MethodGet, "/v1/rule-sets"+path, ""); a.status != http.StatusNotFound || a.slug() == "" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}
