package nbd

import (
	"context"
	"errors"
	"strings"
)

// The errors that an Exports or a Device may return, wrapped or bare, to have
// a client told more than that something went wrong.
var (
	ErrInvalid       = errors.New("nbd: invalid request")
	ErrReadOnly      = errors.New("nbd: export is read-only")
	ErrNoSpace       = errors.New("nbd: no space left")
	ErrShutdown      = errors.New("nbd: server is shutting down")
	ErrUnknownExport = errors.New("nbd: no such export")
	ErrBusy          = errors.New("nbd: export is in use")
)

// verdict is what a client is told of an error: the number in a reply to a
// request, and the type of a reply to an option.
type verdict struct {
	err    error
	errno  uint32
	option uint32
}

// verdicts is searched from the top; otherwise speaks for the errors that are
// not in it.
var (
	verdicts = []verdict{
		{ErrInvalid, errnoInvalid, repErrInvalid},
		{ErrReadOnly, errnoPermission, repErrPolicy},
		{ErrNoSpace, errnoNoSpace, repErrPolicy},
		{ErrShutdown, errnoShutdown, repErrShutdown},
		{ErrUnknownExport, errnoIO, repErrUnknown},
		{ErrBusy, errnoIO, repErrPolicy},
		{context.Canceled, errnoShutdown, repErrShutdown}, // as the end of a connection does
	}
	otherwise = verdict{nil, errnoIO, repErrUnknown}
)

func judge(err error) verdict {
	for _, v := range verdicts {
		if errors.Is(err, v.err) {
			return v
		}
	}
	return otherwise
}

// message is the text of an error as the protocol allows it in a reply.
func message(err error) string {
	s := err.Error()
	return strings.ToValidUTF8(s[:min(len(s), maxMessage)], "")
}
