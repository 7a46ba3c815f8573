package chunk

import "errors"

// The ways in which the data plane refuses or fails. They are defined here,
// at the bottom, because stores and replicas return them, connections carry
// them as codes, and volumes decide by them what to do next.
var (
	// ErrInvalid: the request is malformed; repeating it is pointless.
	ErrInvalid = errors.New("invalid request")
	// ErrStaleEpoch: the request was made under another configuration of
	// the copyset; fetch the map and try again.
	ErrStaleEpoch = errors.New("stale epoch")
	// ErrNotReady: the copyset can't serve at the moment (it is being
	// configured or brought together); try again.
	ErrNotReady = errors.New("copyset not ready")
	// ErrFenced: a later attachment of the volume exists; this writer is done.
	ErrFenced = errors.New("fenced by a later attachment")
	// ErrNoSpace: the store would run full; nothing was changed.
	ErrNoSpace = errors.New("no space left")
	// ErrDamaged: stored data does not match its checksum, or the journal
	// is broken before its end. Damaged data is never returned.
	ErrDamaged = errors.New("stored data is damaged")
	// ErrStopped: the store or connection has been closed or has failed.
	ErrStopped = errors.New("stopped")
)
