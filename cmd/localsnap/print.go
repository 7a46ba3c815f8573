package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

// show prints a value: as JSON, or as text prints it.
func show(w io.Writer, asJSON bool, value any, text func(io.Writer) error) error {
	if !asJSON {
		return text(w)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// table prints rows under a header, in columns as wide as they must be.
func table(w io.Writer, header string, rows int, row func(i int) string) error {
	columns := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(columns, header)
	for i := range rows {
		fmt.Fprintln(columns, row(i))
	}
	return columns.Flush()
}

// bytesText writes a size with the largest unit that leaves it above one.
func bytesText(n uint64) string {
	value, unit := scaled(n)
	return strconv.FormatFloat(value, 'f', -1, 64) + " " + unit
}

// aboutText is bytesText to one digit behind the point, for what was measured.
func aboutText(n uint64) string {
	value, unit := scaled(n)
	return fmt.Sprintf("%.1f %s", value, unit)
}

func scaled(n uint64) (value float64, unit string) {
	value, unit = float64(n), "B"
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, larger
	}
	return value, unit
}

// timeText writes a time of the API in the user's time zone.
func timeText(micros uint64) string {
	return time.UnixMicro(int64(micros)).Format(time.DateTime)
}

func volumeState(f client.FileInfo) string {
	switch {
	case f.Status == client.Flattening:
		return fmt.Sprintf("flattening %d%%", f.Progress)
	case f.Status == client.Unflattened && f.Readonly:
		return "clone, read-only"
	case f.Status == client.Unflattened:
		return "clone"
	case f.Readonly:
		return "read-only"
	}
	return "ready"
}

func printVolumes(w io.Writer, files []client.FileInfo) error {
	return table(w, "PATH\tSIZE\tSTATE\tOWNER\tCREATED", len(files), func(i int) string {
		f := files[i]
		size, state := bytesText(f.FileLength), volumeState(f)
		if f.Type == client.Directory {
			size, state = "-", "directory"
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", f.File, size, state, f.User, timeText(f.Time))
	})
}

func snapshotState(s client.Snapshot) string {
	switch s.Status {
	case client.SnapshotDone:
		return "ready"
	case client.SnapshotPending:
		return "pending"
	case client.SnapshotDeleting:
		return fmt.Sprintf("deleting %d%%", s.Progress)
	case client.SnapshotErrorDeleting:
		return "deletion failed"
	case client.SnapshotCanceling:
		return "canceling"
	}
	return "error"
}

func printSnapshots(w io.Writer, list []client.Snapshot) error {
	return table(w, "SNAPSHOT\tSIZE\tSTATE\tOWNER\tCREATED\tUUID", len(list), func(i int) string {
		s := list[i]
		return fmt.Sprintf("%s@%s\t%s\t%s\t%s\t%s\t%s", s.File, s.Name, bytesText(s.FileLength), snapshotState(s), s.User, timeText(s.Time), s.UUID)
	})
}

func taskType(t client.TaskType) string {
	if t == client.TaskRecover {
		return "rollback"
	}
	return "clone"
}

func taskState(t client.TaskInfo) string {
	switch t.TaskStatus {
	case client.TaskDone:
		return "done"
	case client.TaskMetaInstalled:
		return "usable, not flattened"
	case client.TaskCloning, client.TaskRecovering:
		return fmt.Sprintf("running %d%%", t.Progress)
	case client.TaskCleaning:
		return "cleaning"
	case client.TaskRetrying:
		return "retrying"
	}
	return "error"
}

func printTasks(w io.Writer, list []client.TaskInfo) error {
	return table(w, "UUID\tTASK\tVOLUME\tSOURCE\tSTATE\tUSER\tBEGUN", len(list), func(i int) string {
		t := list[i]
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s", t.UUID, taskType(t.TaskType), t.File, t.Src, taskState(t), t.User, timeText(t.Time))
	})
}
