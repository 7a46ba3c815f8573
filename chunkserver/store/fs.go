package store

import "os"

// FS is the file system below a store, and the seam at which tests lose
// power. Names are relative to the store's directory, with forward slashes.
//
// A file's name is durable once SyncDir of its directory has returned, its
// content once Sync has; until then a loss of power may keep any part of it.
type FS interface {
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// Create makes a file, or empties an existing one.
	Create(name string) (File, error)
	// Mkdir makes a directory unless it exists.
	Mkdir(name string) error
	// Rename replaces newname by oldname atomically.
	Rename(oldname, newname string) error
	// Remove deletes a file or an empty directory.
	Remove(name string) error
	// List returns the names in a directory, sorted; none if it does not exist.
	List(dir string) ([]string, error)
	// SyncDir makes creations, renames and removals in dir durable.
	SyncDir(dir string) error
	// Lock keeps every other process from locking name, until the returned
	// function is called.
	Lock(name string) (unlock func() error, err error)
	// Free returns the number of bytes that may still be written.
	Free() (uint64, error)
	// Database opens, or creates, the file that bbolt maps and syncs itself.
	Database(name string) (*os.File, error)
}

// File is an open file. Offsets and lengths are in bytes.
type File interface {
	// ReadAt fills p; what lies beyond the end of the file reads as zeros.
	ReadAt(p []byte, off int64) error
	// WriteAt writes the buffers one after the other from off on.
	WriteAt(off int64, buffers ...[]byte) error
	// CopyTo copies a range to the same place of dst without passing it
	// through the caller, sharing the blocks where the file system can.
	CopyTo(dst File, off, n int64) error
	// Punch frees a range, the content of which is undefined afterwards.
	Punch(off, n int64) error
	// Sync makes content and length durable.
	Sync() error
	// Uncache drops what is cached in memory of a synced range, so that the
	// next ReadAt sees the medium.
	Uncache(off, n int64)
	// Size returns the length of the file.
	Size() (int64, error)
	Close() error
}
