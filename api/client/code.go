package client

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// Code says how a request ended. In a reply it is a string: "0", "-8".
type Code int

const (
	OK                 Code = 0
	Internal           Code = -1  // a fault of the server
	InitFailed         Code = -2  // never sent
	StartFailed        Code = -3  // never sent
	Stopped            Code = -4  // the server is stopping, or reaches no leader
	BadRequest         Code = -5  // malformed, or an unknown action
	TaskExists         Code = -6  // never sent
	InvalidUser        Code = -7  // the user doesn't own the volume, directory, snapshot or task
	NotExist           Code = -8  // no such volume, directory, snapshot, task or poolset
	InvalidStatus      Code = -9  // the object's state forbids it, and no other code says why
	NotAligned         Code = -10 // never sent
	NameMismatch       Code = -11 // the snapshot belongs to another volume
	SnapshotUnfinished Code = -12 // never sent: snapshots are finished at once
	HasError           Code = -13 // never sent: no snapshot is ever in error
	CancelFinished     Code = -14 // the snapshot is finished, or unknown
	InvalidSnapshot    Code = -15 // the snapshot is being deleted
	SnapshotInUse      Code = -16 // the snapshot has clones that are not flattened
	TaskRunning        Code = -17 // the task is not finished
	SnapshotLimit      Code = -18 // the volume has as many snapshots as it may have
	Exists             Code = -19 // the name is taken, and not by what the same request made
	TaskFull           Code = -20 // never sent
	NotSupported       Code = -21 // this kind of object can't do that
	UnderSnapshot      Code = -22 // the volume has snapshots
	Occupied           Code = -23 // the volume is attached or being flattened
	InvalidArgument    Code = -24 // a value is well-formed but unacceptable
)

// messages holds the text of Code c at -c. Clients in the field compare it:
// its spelling is part of the contract.
var messages = [...]string{
	"Exec success.",
	"Internal error.",
	"Server init fail.",
	"Server start fail.",
	"Service is stop",
	`BadRequest:"Invalid request."`,
	"Task already exist.",
	"Invalid user.",
	"File not exist.",
	"File status invalid.",
	"Chunk size not aligned.",
	"FileName not match.",
	"Cannot delete unfinished.",
	"Cannot create when has error.",
	"Cannot cancel finished.",
	"Invalid snapshot.",
	"Cannot delete when using.",
	"Cannot clean task unfinished.",
	"Snapshot count reach the limit.",
	"File exist.",
	"Task is full.",
	"not support.",
	"File is under snapshot",
	"File is occuiped",
	"Invalid argument.",
}

// Message is the text that goes with a code in every reply, empty for a number
// that is no code.
func (c Code) Message() string {
	if c > 0 || int(-c) >= len(messages) {
		return ""
	}
	return messages[-c]
}

// HTTPStatus is the status of the HTTP response that carries a code.
func (c Code) HTTPStatus() int {
	switch c {
	case OK:
		return http.StatusOK
	case BadRequest:
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// MarshalText makes a Code a string in JSON.
func (c Code) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(c), 10), nil }

// UnmarshalText is the inverse of MarshalText. It also takes numbers that are
// no codes: a newer server may know more of them.
func (c *Code) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(string(text))
	if err != nil {
		return fmt.Errorf("code %q is not a number", text)
	}
	*c = Code(n)
	return nil
}

// Error is a server's refusal.
type Error struct {
	Code      Code
	Message   string // the server's text for Code
	Detail    string // one sentence that says what was wrong with which value; may be empty
	RequestID string // by which the servers' logs know the request
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s (%d)", e.Message, e.Code)
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// Refused reports whether err is a server's refusal with that code.
func Refused(err error, code Code) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Code == code
}
