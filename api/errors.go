package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

// codes is the one table between refusals and codes. Their texts and HTTP
// statuses go with the codes.
var codes = map[fsm.Kind]client.Code{
	fsm.InvalidArgument: client.InvalidArgument,
	fsm.NotExist:        client.NotExist,
	fsm.NotOwner:        client.InvalidUser,
	fsm.Exists:          client.Exists,
	fsm.BadStatus:       client.InvalidStatus,
	fsm.Unsupported:     client.NotSupported,
	fsm.NameMismatch:    client.NameMismatch,
	fsm.InvalidSnapshot: client.InvalidSnapshot,
	fsm.CancelFinished:  client.CancelFinished,
	fsm.SnapshotInUse:   client.SnapshotInUse,
	fsm.SnapshotLimit:   client.SnapshotLimit,
	fsm.UnderSnapshot:   client.UnderSnapshot,
	fsm.Occupied:        client.Occupied,
	fsm.TaskRunning:     client.TaskRunning,
	fsm.Stale:           client.InvalidStatus, // the volume's writer changed again and again
}

// refuse is a failure for which no command or query is needed.
func refuse(code client.Code, format string, args ...any) *client.Error {
	return &client.Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// explain translates the failure of a request: what nobody foresaw is Internal.
func explain(err error) *client.Error {
	var known *client.Error
	var refused *fsm.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &refused):
		if code, ok := codes[refused.Kind]; ok {
			return &client.Error{Code: code, Detail: refused.Detail}
		}
	case errors.Is(err, cluster.ErrUnknown), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return refuse(client.Stopped, "no answer before the request's deadline, or the leader was lost: the request may have taken effect, and can be repeated")
	}
	return &client.Error{Code: client.Internal}
}
