package nbd

import "context"

// Exports is what a server offers. Its methods are called concurrently.
type Exports interface {
	// List returns the names of the exports that clients may be told of.
	List(ctx context.Context) ([]string, error)

	// Stat describes an export without opening it.
	// The error is ErrUnknownExport if there is none of that name.
	Stat(ctx context.Context, name string) (Info, error)

	// Open gives a connection its device. ctx ends when Open has returned.
	// Clients open an export several times and spread their requests: all
	// devices of one name see each other's writes at once.
	// Errors are ErrUnknownExport, ErrBusy, ErrShutdown or any other, which
	// the client learns as a refusal with the error's text.
	Open(ctx context.Context, name string) (Device, error)
}

// Info describes an export.
type Info struct {
	Size        int64 // in bytes
	ReadOnly    bool
	Description string // for people; may be empty
}

// Device is an open export. Except for Close its methods are called
// concurrently, with ranges of at least one byte that lie within Size; they
// return soon after ctx has ended. An error that wraps one of this package's
// reaches the client with its meaning, any other as an input/output error.
type Device interface {
	// Info describes the device. It does not change while it is open.
	Info() Info

	// ReadAt fills p, all of it unless there is an error, with what the
	// device holds from off on. It does not keep p.
	ReadAt(ctx context.Context, p []byte, off int64) error

	// WriteAt stores p at off. It neither changes nor keeps p.
	WriteAt(ctx context.Context, p []byte, off int64) error

	// Flush makes durable every change that has returned before, through
	// whichever device of the same export.
	Flush(ctx context.Context) error

	// Discard says that nobody needs n bytes at off any more. They may read
	// as anything until they are written again.
	Discard(ctx context.Context, off, n int64) error

	// Zero makes n bytes at off read as zeroes, faster than WriteAt of as
	// many zeroes. With punch their space may be given up; without it a
	// later write to them must not fail for lack of space.
	Zero(ctx context.Context, off, n int64, punch bool) error

	// Extents describes the range from off on, in order and without gaps.
	// It may stop early, after at least one extent.
	Extents(ctx context.Context, off, n int64) ([]Extent, error)

	// Close ends the use of the device, after every other call has returned.
	Close() error
}

// Extent is a run of bytes that are alike.
type Extent struct {
	Length int64 // in bytes, at least 1
	Hole   bool  // takes no space
	Zero   bool  // reads as zeroes
}
