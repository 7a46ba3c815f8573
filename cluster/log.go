package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLog passes what the library has to say on to l, all of it at debug: what
// matters of it, a Node says itself.
func raftLog(l *slog.Logger) hclog.Logger {
	logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	logger.RegisterSink(sink{l})
	return logger
}

type sink struct{ log *slog.Logger }

// Accept implements hclog.SinkAdapter.
func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	if !s.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	for i, arg := range args {
		if f, ok := arg.(hclog.Format); ok { // a format and its arguments
			args[i] = fmt.Sprintf(f[0].(string), f[1:]...)
		}
	}
	s.log.Debug("raft: "+msg, append(args, "severity", level.String())...)
}
