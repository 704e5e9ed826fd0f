package edge

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/go-chi/chi/v5"

	"crivo/services/store"
)

func (e *edge) getRuleSets(w http.ResponseWriter, r *http.Request, _ *member) error {
	all, err := e.Registry.RuleSets(r.Context())
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return answer(w, http.StatusOK, map[string]any{"items": all})
}

// ruleSetAnswer is one version with its file.
type ruleSetAnswer struct {
	store.RuleSet
	Source string `json:"source"`
}

func (e *edge) getRuleSet(w http.ResponseWriter, r *http.Request, _ *member) error {
	version, err := strconv.Atoi(chi.URLParam(r, "version"))
	if err != nil {
		return store.ErrNotFound
	}
	set, err := e.Registry.RuleSet(r.Context(), chi.URLParam(r, "name"), version)
	if err != nil {
		return missing(err)
	}
	return answer(w, http.StatusOK, &ruleSetAnswer{set, string(set.Source)})
}
