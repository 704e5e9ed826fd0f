package streams

// Permissions lists the subjects that a service's user may publish and subscribe: the table of who may say what, enforced by
// the server. Inboxes are private per service, since a shared one would let any service read what others pull.
func Permissions(service string) (publish, subscribe []string) {
	subscribe = []string{InboxPrefix(service) + ".>"}
	for _, s := range Steps {
		if s.Step != service {
			continue
		}
		publish = append(publish,
			"$JS.API.CONSUMER.INFO."+s.Stream+"."+s.Durable,
			"$JS.API.CONSUMER.MSG.NEXT."+s.Stream+"."+s.Durable,
			"$JS.API.STREAM.INFO."+s.Stream,
			"$JS.ACK."+s.Stream+"."+s.Durable+".>",
			"$JS.ACK.*.*."+s.Stream+"."+s.Durable+".>", // the form with domain and account hash
			"dlq."+service+".>")
		publish = append(publish, attempts...)
	}
	switch service {
	case "edge":
		publish = append(publish, "tx.submitted.*", "tx.decided.*", "tx.rejected.*", "control.>", "_INBOX.>", "$SRV.>")
		for _, s := range Steps {
			publish = append(publish, "$JS.API.STREAM.INFO."+s.Stream) // for the room in it
		}
		publish = append(publish, letters...)
		publish = append(publish, "$JS.API.DIRECT.GET."+Decided, "$JS.API.STREAM.MSG.GET."+Decided) // for who listens to decisions
		subscribe = append(subscribe, "tx.intake.*", "edge.*", "control.>", "$SRV.>")
	case "enrich":
		publish = append(publish, "tx.enriched.*", "tx.scored.*", "$JS.API.DIRECT.GET."+Submitted+".>", "$JS.API.DIRECT.GET."+Submitted,
			"$JS.API.STREAM.MSG.GET."+Submitted)
	case "validate":
		publish = append(publish, "tx.validated.*", "tx.scored.*")
		subscribe = append(subscribe, "control.>")
	case "score":
		publish = append(publish, "tx.scored.*")
	case "persist":
		publish = append(publish, "tx.decided.*", "edge.*")
	case "notify":
		publish = append(publish, "control.endpoints")
		subscribe = append(subscribe, "control.>")
	case "keeper":
		publish = append(publish, "tx.submitted.*", "tx.enriched.*", "tx.validated.*", "tx.scored.*", "tx.decided.*", "control.>",
			"dlq.>", "$JS.API.>", "$JS.ACK.>", "$KV.>")
		subscribe = append(subscribe, "control.>")
	}
	return publish, subscribe
}

// attempts are the subjects behind the bucket of attempts.
var attempts = []string{"$JS.API.STREAM.INFO.KV_" + AttemptsBucket, "$JS.API.DIRECT.GET.KV_" + AttemptsBucket + ".>",
	"$JS.API.STREAM.MSG.GET.KV_" + AttemptsBucket, "$KV." + AttemptsBucket + ".>"}

// letters are the subjects behind dead letters for who reads and removes them: no consumer, which could send them anywhere.
var letters = []string{"$JS.API.STREAM.INFO." + DeadLetters, "$JS.API.DIRECT.GET." + DeadLetters, "$JS.API.STREAM.MSG.DELETE." + DeadLetters}

// InboxPrefix is where a service's answers arrive.
func InboxPrefix(service string) string { return "_INBOX_" + service }

// Services are the processes of the system, in the order of the flow.
var Services = []string{"edge", "enrich", "validate", "score", "persist", "notify", "keeper"}
