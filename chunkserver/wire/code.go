package wire

import (
	"context"
	"errors"
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Code is an error as it crosses a connection. Numbers are never reused.
type Code uint16

const (
	codeOK          Code = 0
	codeInternal    Code = 1
	codeInvalid     Code = 2
	codeStaleEpoch  Code = 3
	codeNotReady    Code = 4
	codeFenced      Code = 5
	codeNoSpace     Code = 6
	codeDamaged     Code = 7
	codeStopped     Code = 8
	codeNotLeader   Code = 9
	codeNotExist    Code = 10
	codeOccupied    Code = 11
	codeReadOnly    Code = 12
	codeForeign     Code = 13
	codeUnavailable Code = 14
)

// The refusals of the control plane. Those of the data plane are in chunk.
var (
	// ErrNotLeader: ask the metadata server that is named, if one is.
	ErrNotLeader = errors.New("not the metadata leader")
	// ErrNotExist: no such volume or snapshot.
	ErrNotExist = errors.New("no such volume or snapshot")
	// ErrOccupied: another attachment is in the way.
	ErrOccupied = errors.New("volume is attached elsewhere")
	// ErrReadOnly: a writer was asked for and only readers are possible.
	ErrReadOnly = errors.New("read-only")
	// ErrForeign: the peer belongs to another cluster.
	ErrForeign = errors.New("belongs to another cluster")
	// ErrUnavailable: it can't be done at present; try again.
	ErrUnavailable = errors.New("unavailable at present")
)

// codes is the one table between errors and codes.
var codes = []struct {
	code Code
	err  error
}{
	{codeInvalid, chunk.ErrInvalid},
	{codeStaleEpoch, chunk.ErrStaleEpoch},
	{codeNotReady, chunk.ErrNotReady},
	{codeFenced, chunk.ErrFenced},
	{codeNoSpace, chunk.ErrNoSpace},
	{codeDamaged, chunk.ErrDamaged},
	{codeStopped, chunk.ErrStopped},
	{codeNotLeader, ErrNotLeader},
	{codeNotExist, ErrNotExist},
	{codeOccupied, ErrOccupied},
	{codeReadOnly, ErrReadOnly},
	{codeForeign, ErrForeign},
	{codeUnavailable, ErrUnavailable},
	{codeUnavailable, context.DeadlineExceeded},
	{codeUnavailable, context.Canceled},
}

// codeOf finds the code of an error; one that isn't in the table is internal.
func codeOf(err error) Code {
	if err == nil {
		return codeOK
	}
	for _, row := range codes {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return codeInternal
}

// NotLeader refuses a session on a server that does not lead and says who
// does: the leader's control address, or nothing if that isn't known.
func NotLeader(leader string) error { return notLeader(leader) }

type notLeader string

func (e notLeader) Error() string        { return string(e) }
func (e notLeader) Is(target error) bool { return target == ErrNotLeader }

// LeaderOf returns the address that a refusal by NotLeader names, or "".
func LeaderOf(err error) string {
	var remote *RemoteError
	if errors.Is(err, ErrNotLeader) && errors.As(err, &remote) {
		return remote.Text
	}
	return ""
}

// RemoteError is a peer's refusal. errors.Is sees the error that its code
// stands for; an internal error of the peer is none of them.
type RemoteError struct {
	Text string // the peer's words
	is   error
}

func (e *RemoteError) Error() string {
	if e.is == ErrNotLeader && e.Text == "" {
		return "peer: not the metadata leader, nor does it know one"
	}
	if e.is == ErrNotLeader {
		return "peer: not the metadata leader, which is at " + e.Text
	}
	return "peer: " + e.Text
}

func (e *RemoteError) Unwrap() error { return e.is }

func remoteError(code Code, text []byte) error {
	for _, row := range codes {
		if row.code == code {
			return &RemoteError{string(text), row.err}
		}
	}
	if code == codeInternal {
		return &RemoteError{string(text), nil}
	}
	return &RemoteError{fmt.Sprintf("unknown code %d: %s", code, text), nil}
}
