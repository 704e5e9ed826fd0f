package store

import (
	"context"
	"time"
)

// The sets below are what one database room offers. Steps declare the one to three methods of these that they call; the
// suites in storetest and the rooms are written against the whole.

// Transactions is the transaction store: the claim and the one arbiter of decisions. Times are kept to the millisecond.
type Transactions interface {
	// Claim inserts each document whose key is absent, durably; results are in order, and one that is refused costs the others
	// nothing. An error means that the outcome of each is unknown: any of them may stand, whole; the repeat completes them.
	Claim(ctx context.Context, claims []Claim) ([]Claimed, error)
	// Get returns one document or ErrNotFound.
	Get(ctx context.Context, key Key) (Entry, error)
	// Raise sets run FromRun+1 and the new times where the document is undecided and its run is FromRun; the entry as it
	// stands after is returned, with ErrChanged where the guard did not hold.
	Raise(ctx context.Context, r Raise) (Entry, error)
	// Decide completes each document where no decision is, and inserts it whole where it is missing; results in order.
	// Whoever finds a decision gets its bytes. An error means that the outcome of each is unknown, as with Claim.
	Decide(ctx context.Context, decides []Decide) ([]Outcome, error)
	// Dispose closes a review where nobody has; the entry as it stands after is returned, with ErrChanged where it is no review
	// or was closed before.
	Dispose(ctx context.Context, key Key, d Disposition) (Entry, error)
	// Overdue returns up to limit undecided documents whose deadline is before t, oldest deadline first.
	Overdue(ctx context.Context, t time.Time, limit int) ([]Entry, error)
	// Unannounced returns up to limit decisions made before t and still marked unannounced, oldest first.
	Unannounced(ctx context.Context, t time.Time, limit int) ([]Entry, error)
	// Announced clears the mark.
	Announced(ctx context.Context, keys []Key) error
	// Undecided returns those of keys that hold no decision (a missing document counts as undecided).
	Undecided(ctx context.Context, keys []Key) ([]Key, error)
	// Search returns one page of decided transactions and the cursor of the next ("" at the end). It may lag behind what is
	// decided: nothing is decided on it.
	Search(ctx context.Context, q Query) ([]Found, string, error)
	// Ping answers within ctx when the store can be written.
	Ping(ctx context.Context) error
}

// Registry holds what operators set: tenants, keys, endpoints, lists, rule sets, and the audit log of their acts.
type Registry interface {
	Tenants(ctx context.Context) ([]Tenant, error)
	// PutTenant adds one; one that stands is never changed: ErrChanged, whatever t holds.
	PutTenant(ctx context.Context, t Tenant) error
	Keys(ctx context.Context) ([]APIKey, error)
	PutKey(ctx context.Context, k APIKey) error
	// DeleteKey returns ErrNotFound where tenant has no such key.
	DeleteKey(ctx context.Context, tenant, id string) error
	Endpoints(ctx context.Context) ([]Endpoint, error)
	PutEndpoint(ctx context.Context, e Endpoint) error
	// ChangeEndpoint replaces the endpoint where it stands in e's version and counts that up; ErrChanged where it does not, or is gone.
	ChangeEndpoint(ctx context.Context, e Endpoint) error
	DeleteEndpoint(ctx context.Context, tenant, id string) error
	// Replays returns the last replay of every endpoint that had one.
	Replays(ctx context.Context) ([]Replay, error)
	// PutReplay adds one where the endpoint had none (version 0), or replaces the one that stands in r's version, and counts that
	// up; ErrChanged where another stands.
	PutReplay(ctx context.Context, r Replay) error
	// ListEntries returns every entry of every tenant, in an order that changes with them only.
	ListEntries(ctx context.Context) ([]ListEntry, error)
	// ListPage returns one page of a list and the cursor of the next ("" at the end).
	ListPage(ctx context.Context, q ListQuery) ([]ListEntry, string, error)
	// PutListEntry adds an entry and returns what stands. Where the list has the value already, that entry gets e's reason and
	// expiry and keeps the rest.
	PutListEntry(ctx context.Context, e ListEntry) (ListEntry, error)
	// DeleteListEntry returns ErrNotFound where the tenant's list has no such entry.
	DeleteListEntry(ctx context.Context, tenant, list, id string) error
	// PutRuleSet adds a version; one that stands is never changed: ErrChanged where it has another digest.
	PutRuleSet(ctx context.Context, s RuleSet) error
	// RuleSets returns all versions by name and version, without their sources.
	RuleSets(ctx context.Context) ([]RuleSet, error)
	// RuleSet returns one version whole or ErrNotFound.
	RuleSet(ctx context.Context, name string, version int) (RuleSet, error)
	// State returns what a service last put under a name, or ErrNotFound.
	State(ctx context.Context, name string) ([]byte, error)
	PutState(ctx context.Context, name string, value []byte) error
	// SwapState puts a value where from stands (nil: nothing does) and returns ErrChanged where it does not.
	SwapState(ctx context.Context, name string, from, to []byte) error
	// Record appends one act to the audit log.
	Record(ctx context.Context, a Act) error
	// Acts returns the newest limit acts, newest first.
	Acts(ctx context.Context, limit int) ([]Act, error)
}

// Deliveries holds the webhooks that are owed.
type Deliveries interface {
	// Insert adds rows whose (tenant, endpoint, webhook id) is absent and tells which were added. Rows come with LeasedUntil
	// set by the inserter, who tries them at once. An error means that any of them may be there.
	Insert(ctx context.Context, rows []Delivery) ([]bool, error)
	// Lease takes up to limit pending rows of one endpoint ("" for any) that are due at now and not leased, until then.
	// Rows come earliest due first.
	Lease(ctx context.Context, endpoint string, now, until time.Time, limit int) ([]Delivery, error)
	// DueEndpoints returns the ids of endpoints with rows that are due at now and not leased.
	DueEndpoints(ctx context.Context, now time.Time) ([]string, error)
	// Update writes back status, attempts, next attempt, its trigger and lease of rows. One that is no longer leased until its Held,
	// so that another may have tried it since, stays as it is; a zero Held is any. An error means that any of them may be written.
	Update(ctx context.Context, rows []Delivery) error
	// Cancel ends every pending row of an endpoint with status (Cancelled, Skipped), those asked for too, and tells how many there were.
	Cancel(ctx context.Context, tenant, endpoint, status string) (int, error)
	Get(ctx context.Context, tenant, id string) (Delivery, error)
	// Resend makes a row due at r.At for one more attempt, and keeps the status that it had in Was. ErrChanged where an attempt is
	// under way or asked for already, or the last replay that asked was r.Replay; ErrNotFound where there is no such row. Whoever
	// held the row holds it no longer.
	Resend(ctx context.Context, r Resend) error
	// Between returns up to q.Limit rows, oldest first.
	Between(ctx context.Context, q Span) ([]Delivery, error)
	// List returns one page and the cursor of the next ("" at the end).
	List(ctx context.Context, q DeliveryQuery) ([]Delivery, string, error)
}
