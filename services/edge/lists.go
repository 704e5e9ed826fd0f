package edge

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"

	"crivo/pkg/txn"
	"crivo/services/lists"
	"crivo/services/store"
	"crivo/streams"
)

const (
	maxListed = 128 // characters; the longest that a transaction can show is a device's id
	maxReason = 256 // bytes
)

// listWish is the body of POST …/entries.
type listWish struct {
	Kind      string
	Value     txn.Personal
	Reason    string
	ExpiresAt *txn.Time
}

// listOf returns the list that a path names. There is one.
func listOf(r *http.Request) (string, error) {
	if list := chi.URLParam(r, "list"); list != lists.Block {
		return "", store.ErrNotFound
	}
	return lists.Block, nil
}

// postEntry puts a value on a list; one that is there gets the reason and the end that are given now.
func (e *edge) postEntry(w http.ResponseWriter, r *http.Request, m *member) error {
	list, err := listOf(r)
	if err != nil {
		return err
	}
	var in listWish
	if err := (members{"kind": &in.Kind, "value": &in.Value, "reason": &in.Reason, "expires_at": &in.ExpiresAt}).read(w, r); err != nil {
		return err
	}
	value, err := e.understand(in)
	if err != nil {
		return err
	}
	box, err := e.Keys.Box(m.Tenant)
	if err != nil {
		return err
	}
	made := store.ListEntry{Tenant: m.Tenant, List: list, Kind: in.Kind, Reason: in.Reason, AddedBy: m.ID, CreatedAt: txn.At(e.Clock.Now()), ExpiresAt: in.ExpiresAt}
	if made.Value, err = value.Shown(box); err != nil {
		return err
	}
	made.ID = entryID(made)
	if err := e.record(r.Context(), m, "list.add", made.ID, map[string]any{"list": list, "kind": in.Kind}); err != nil {
		return err
	}
	if made, err = e.Registry.PutListEntry(r.Context(), made); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	e.announce(streams.TopicLists)
	return answer(w, http.StatusCreated, &made)
}

// understand reads what was wished, or returns everything that is wrong with it.
func (e *edge) understand(in listWish) (lists.Value, error) {
	var faults txn.Faults
	fault := func(pointer, code, detail string) {
		faults = append(faults, txn.Fault{Pointer: pointer, Code: code, Detail: detail})
	}
	value, err := lists.Understand(in.Kind, in.Value.Reveal())
	switch {
	case in.Kind == "":
		fault("/kind", txn.Required, "is required")
	case errors.Is(err, lists.ErrKind):
		fault("/kind", txn.WrongFormat, "a kind such as document; the API's description has them all")
	}
	switch {
	case in.Value.IsZero():
		fault("/value", txn.Required, "is required")
	case utf8.RuneCountInString(in.Value.Reveal()) > maxListed:
		fault("/value", txn.TooLong, "at most 128 characters")
	case err != nil && !errors.Is(err, lists.ErrKind):
		fault("/value", txn.WrongFormat, err.Error())
	}
	if len(in.Reason) > maxReason {
		fault("/reason", txn.TooLong, "at most 256 bytes")
	}
	if in.ExpiresAt != nil && !in.ExpiresAt.After(e.Clock.Now()) {
		fault("/expires_at", txn.OutOfRange, "must be ahead")
	}
	return value, orNil(faults)
}

// entryID is the same whenever the same value is put on the list, so that the record of an act names the entry that will stand.
func entryID(e store.ListEntry) string {
	sum := sha256.Sum256([]byte(e.Tenant + "/" + e.List + "/" + e.Kind + "/" + e.Value))
	return "ent_" + base32.StdEncoding.EncodeToString(sum[:])[:26]
}

// entryForm is what an id looks like.
var entryForm = regexp.MustCompile(`^ent_[A-Z2-7]{26}$`)

func (e *edge) getEntries(w http.ResponseWriter, r *http.Request, m *member) error {
	list, err := listOf(r)
	if err != nil {
		return err
	}
	limit, faults := limitOf(r.URL.Query())
	if err := orNil(faults); err != nil {
		return err
	}
	entries, cursor, err := e.Registry.ListPage(r.Context(), store.ListQuery{Tenant: m.Tenant, List: list, Limit: limit, Cursor: r.URL.Query().Get("cursor")})
	if err != nil {
		return missing(err)
	}
	return answer(w, http.StatusOK, pageOf(entries, cursor))
}

func (e *edge) deleteEntry(w http.ResponseWriter, r *http.Request, m *member) error {
	list, err := listOf(r)
	if err != nil {
		return err
	}
	id := pathID(r)
	if !entryForm.MatchString(id) { // such as the value itself, which must not be on record in clear
		return store.ErrNotFound
	}
	// The record comes first, and so tells of a delete that found nothing too.
	if err := e.record(r.Context(), m, "list.remove", id, map[string]any{"list": list}); err != nil {
		return err
	}
	if err := e.Registry.DeleteListEntry(r.Context(), m.Tenant, list, id); err != nil {
		return missing(err)
	}
	e.announce(streams.TopicLists)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
