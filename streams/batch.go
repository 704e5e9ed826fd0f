package streams

import (
	"context"
	"iter"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// GetBatch reads several messages of a stream with one question. It is not asked of a broker that is away: the library would leave
// the inbox that it made for the answer, half a megabyte with each try.
func GetBatch(ctx context.Context, js jetstream.JetStream, stream string, most int, opts ...jetstreamext.GetBatchOpt) (iter.Seq2[*jetstream.RawStreamMsg, error], error) {
	if !js.Conn().IsConnected() {
		return nil, nats.ErrDisconnected
	}
	return jetstreamext.GetBatch(ctx, js, stream, most, opts...)
}
