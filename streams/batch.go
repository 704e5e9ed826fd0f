package streams

import (
	"context"
	"errors"
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

// Full tells whether an error says that a stream, or the server, has no room.
func Full(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == 10077 || api.ErrorCode == 10047) // its byte budget; the server's storage
}
