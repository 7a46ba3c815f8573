package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// gib is a size as it is written on a command line. The API counts in GiB.
type gib uint64

// units are the suffixes of sizes, in MiB.
var units = map[string]uint64{"M": 1, "G": 1 << 10, "T": 1 << 20, "P": 1 << 30}

func (g *gib) UnmarshalText(text []byte) error {
	s := strings.TrimSuffix(strings.TrimSuffix(string(text), "B"), "i")
	if s == "" {
		return badSize(text, "")
	}
	unit, ok := units[strings.ToUpper(s[len(s)-1:])]
	if !ok || strings.HasSuffix(string(text), "B") && !strings.HasSuffix(string(text), "iB") {
		return badSize(text, "")
	}
	n, err := strconv.ParseFloat(s[:len(s)-1], 64)
	mib := n * float64(unit)
	if err != nil || !(mib > 0) || mib > 1<<40 {
		return badSize(text, "")
	}
	if mib != float64(uint64(mib)) || uint64(mib)%units["G"] != 0 {
		return badSize(text, ": it must be a whole number of GiB")
	}
	*g = gib(uint64(mib) / units["G"])
	return nil
}

func badSize(text []byte, why string) error {
	return fmt.Errorf("%q is no size%s; sizes are written like 10G, 512GiB or 1.5T, in powers of 1024", text, why)
}

func (g gib) String() string { return bytesText(uint64(g) << 30) }

// snapshotName names a snapshot as NBD exports do: PATH@NAME.
type snapshotName struct{ file, name string }

func (s *snapshotName) UnmarshalText(text []byte) error {
	file, name, ok := strings.Cut(string(text), "@")
	if !ok || file == "" || name == "" {
		return fmt.Errorf("%q names no snapshot; snapshots are written as VOLUME@NAME, like /vol@monday", text)
	}
	*s = snapshotName{file, name}
	return nil
}

func (s snapshotName) String() string { return s.file + "@" + s.name }

// source is a snapshot, or a volume with its present content.
type source struct{ file, name string }

func (s *source) UnmarshalText(text []byte) error {
	if !strings.Contains(string(text), "@") {
		*s = source{file: string(text)}
		return nil
	}
	var named snapshotName
	if err := named.UnmarshalText(text); err != nil {
		return err
	}
	*s = source(named)
	return nil
}

func (s source) String() string {
	if s.name == "" {
		return s.file
	}
	return snapshotName(s).String()
}

// taskID is the UUID of a task.
type taskID string

func (t *taskID) UnmarshalText(text []byte) error {
	if _, err := uuid.ParseBytes(text); err != nil {
		return fmt.Errorf("%q is no UUID of a task; localsnap task list shows them", text)
	}
	*t = taskID(text)
	return nil
}
