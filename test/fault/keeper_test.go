package fault_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"crivo/streams"
	"crivo/test/system"
)

// The database has never been there since the keeper started: what a broker lost is made again all the same.
func TestTheKeeperMakesStreamsWhileTheDatabaseIsAway(t *testing.T) {
	c := system.NewCluster(t, system.ClusterOptions{Nodes: 1, MongoURI: "mongodb://127.0.0.1:1/?replicaSet=rs0", Database: "none"})
	if err := c.Serve("keeper", 1); err != nil {
		t.Fatal(err)
	}
	until(t, "it waits for the database", func() bool { return strings.Contains(readyz(c, "keeper-1"), "the database, to make the collections") })
	_, js := c.Connect(t)
	for _, stream := range []string{streams.Submitted, streams.Scored} {
		if err := js.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
		until(t, stream+" is there again", func() bool { _, err := js.Stream(t.Context(), stream); return err == nil })
	}
	if err := c.Processes["keeper-1"].Stop(); err != nil {
		t.Error(err)
	}
}

// readyz is what a process says of itself, "" while it does not answer.
func readyz(c *system.Cluster, process string) string {
	res, err := http.Get("http://" + c.Operations[process] + "/readyz")
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body) // cut short, it does not hold what is looked for
	return string(body)
}

func until(t *testing.T, fact string, holds func() bool) {
	t.Helper()
	for give := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(give) {
			t.Fatal("never: ", fact)
		}
	}
}
