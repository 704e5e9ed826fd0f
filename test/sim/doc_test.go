// Package sim_test runs the whole system in simulated time, in the manner of FoundationDB and TigerBeetle: the real edges, steps
// and keeper with their real client library, on a simulated broker and simulated stores, under faults that a seed chooses. When
// the storm is over everything must come to rest, and what clients were told, the store, the streams and the webhooks owed must
// agree. A processor tries some twenty seeds a second, of ten transactions and ten to a hundred seconds of the world each.
//
// Real: edge.Run behind HTTP and NATS with its guard, the runner of pkg/stage and all five steps, keeper.Run with its sweep,
// pkg/app's connection and clock, nats.go. Each process has a connection, a handle on the stores and a clock of its own, and a
// killed one can do nothing more to the world. Simulated: the broker, at its wire (link, broker, stream, consumer), the stores
// behind services/store/memory (handle), the features (no windows), the network and the machines' clocks. Not in it: the rooms of
// services/store that know a driver, webhooks that go out (the one endpoint is paused: rows are owed and none is sent), full
// streams, the wake-up of a feature store that lags.
//
// Reproducing: a choice depends on the seed, on what it is about and on how often that came up, never on which goroutine asked
// first, and every frame and every call takes its own time in nanoseconds, so that one thing happens at a time. What goroutines do
// at the very same nanosecond is left to the scheduler, as are the few pauses that the product and its libraries draw at random
// themselves: deadlines that are whole multiples of each other do end at the same nanosecond. So a seed gives the same faults, mostly
// at the same times and on the same messages: of twelve seeds run twice eight were equal event by event, the others parted late. A
// fault that needs more luck than that shows again within a few tries.
//
// Known and only counted (Silenced): persist stores a decision before it announces it, and an end in between is mended by the
// redelivery of the scored event. A broker that loses that event, or the end of TX_DECIDED, keeps the decision from being told: it
// stands in the store and answers every question, and no webhook is owed. One that loses its whole disk is another matter: what was
// decided before, the keeper announces again.
package sim_test
