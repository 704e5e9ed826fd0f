package txn

// The three decisions, mild to severe.
const (
	Approve = "approve"
	Review  = "review"
	Decline = "decline"
)

// Verdict is the part of a decision that must be reproducible from its evidence, bit for bit.
type Verdict struct {
	Decision string   `json:"decision"` // approve, review, decline
	Score    int      `json:"score"`    // 0–100
	RiskBand string   `json:"risk_band"`
	Reasons  []Reason `json:"reasons"`
	RuleSet  RuleSet  `json:"rule_set"`
}

// Reason is one rule's part in a verdict.
type Reason struct {
	Code   string         `json:"code"`
	Text   string         `json:"text"`
	Rule   string         `json:"rule"`
	Points int            `json:"points"`
	Inputs map[string]any `json:"inputs,omitempty"`
}

// RuleSet names one immutable version of a rule set.
type RuleSet struct {
	Name    string `json:"name"`
	Version int    `json:"version"`
	Digest  string `json:"digest"` // sha256:…
}

// What a check can say. Unknown is never clear.
const (
	Clear   = "clear"
	Hit     = "hit"
	Unknown = "unknown"
)

// Check is what one list or provider said of a transaction.
type Check struct {
	Name      string `json:"name"`
	Status    string `json:"status"` // clear, hit, unknown
	AsOf      *Time  `json:"as_of,omitempty"`
	LatencyMS int64  `json:"latency_ms"`
	Cache     string `json:"cache,omitempty"` // fresh, stale, miss
	Error     string `json:"error,omitempty"`
	Version   string `json:"version,omitempty"` // of the list's snapshot
}

// Decision is the public answer for a decided transaction.
type Decision struct {
	ID     string `json:"id"`
	Status string `json:"status"` // decided
	Verdict
	Checks     []Check  `json:"checks"`
	Degraded   []string `json:"degraded"` // <what>: <class>
	Engine     string   `json:"engine"`
	Late       bool     `json:"late"`
	AcceptedAt Time     `json:"accepted_at"`
	DecidedAt  Time     `json:"decided_at"`
	LatencyMS  int64    `json:"latency_ms"`
}
