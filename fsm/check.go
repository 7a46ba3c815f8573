package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Check verifies the invariants of the package comment, and the file beneath.
// What it returns joins an error for each that does not hold. Apply waits
// meanwhile.
func (f *FSM) Check() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	// Writable though nothing is written: bbolt's own check compares the tree
	// with the list of free pages, which must not change under it.
	tx, err := f.db.Begin(true)
	if err != nil {
		return fmt.Errorf("check metadata: %w", err)
	}
	c := checker{State: &State{tx: tx}}
	c.run()
	return errors.Join(append(c.failures, tx.Rollback())...)
}

type checker struct {
	*State
	failures []error
}

func (c *checker) fail(format string, args ...any) {
	c.failures = append(c.failures, fmt.Errorf(format, args...))
}

func (c *checker) run() {
	defer func() {
		// Damage shows as a panic, of ours or of bbolt.
		if r := recover(); r != nil {
			c.fail("%v", r)
		}
	}()
	for err := range c.tx.Check() {
		c.fail("file: %w", err)
	}
	c.indexes()
	c.names()
	c.volumes()
	c.snapshots()
	c.purges()
	c.attachments()
	c.tasks()
	c.copysets()
}

// indexes makes the index and the counts anew and compares.
func (c *checker) indexes() {
	index, counts := map[string]entry{}, map[string]int{}
	enter[Volume](c, index)
	enter[Directory](c, index)
	enter[Snapshot](c, index)
	enter[Task](c, index)
	enter[Attachment](c, index)
	enter[Node](c, index)
	enter[pool](c, index)
	enter[copyset](c, index)

	must(c.bucket(bucketIndex).ForEach(func(k, v []byte) error {
		e, ok := index[string(k)]
		if !ok || e.value != string(v) {
			c.fail("index entry %q -> %x, want %x", k, v, e.value)
		}
		return nil
	}))
	spans := map[string]string{} // the one that an entry lies in, of a level
	for _, k := range slices.Sorted(maps.Keys(index)) {
		e := index[k]
		if c.find(e.index, e.group, e.key) == nil {
			c.fail("index entry %q is missing", k)
		}
		for level := e.lowest(); level <= wholeGroup; level++ {
			group := string(span(level, e.index, e.group, ""))
			if _, begun := spans[group]; !begun {
				spans[group] = group
			}
			if level <= e.fence() {
				spans[group] = group + e.key
			}
			counts[spans[group]]++
		}
	}
	must(c.bucket(bucketCounts).ForEach(func(k, v []byte) error {
		if n := int(binary.BigEndian.Uint64(v)); n != counts[string(k)] {
			c.fail("count of %q is %d, want %d", k, n, counts[string(k)])
		}
		delete(counts, string(k))
		return nil
	}))
	for k := range counts {
		c.fail("count of %q is missing", k)
	}
}

// enter adds what the records of a type say to an index.
func enter[R record](c *checker, index map[string]entry) {
	for _, r := range all[R](c.State) {
		if _, ok := load[R](c.State, r.key()); !ok {
			c.fail("record %+v is not under its key", r)
		}
		for _, e := range r.entries() {
			key := string(e.place())
			if _, ok := index[key]; ok {
				c.fail("two records have the index entry %q", key)
			}
			index[key] = e
		}
	}
}

// names checks that whatever has a path is in a directory.
func (c *checker) names() {
	inDirectory := func(path string) {
		if err := checkPath(path); err != nil {
			c.fail("name: %w", err)
		} else if _, err := c.parent(path); err != nil {
			c.fail("%s lies in nothing: %w", path, err)
		}
	}
	for _, d := range all[Directory](c.State) {
		inDirectory(d.Path)
		if uint64(d.ID) > c.last(counterFile) {
			c.fail("directory %d is beyond the counter", d.ID)
		}
	}
	for _, v := range all[Volume](c.State) {
		if !v.Purging {
			inDirectory(v.Path)
		}
		if dir, _ := split("/" + v.Path); (dir == "/"+RecycleBin) != (v.Trash != nil) {
			c.fail("volume %d is at %q but has the trash %v", v.ID, v.Path, v.Trash)
		}
	}
}

func (c *checker) volumes() {
	for _, v := range all[Volume](c.State) {
		if uint64(v.ID) > c.last(counterFile) {
			c.fail("volume %d is beyond the counter", v.ID)
		}
		if n := len(v.Lineage); n == 0 || v.Lineage[n-1].To != chunk.MaxSeq || !v.Lineage.Sees(v.Seq) {
			c.fail("volume %d is written at %d, which its head does not see: %v", v.ID, v.Seq, v.Lineage)
		}
		c.ancestry(v)
		if v.Flattening && v.Parent == uuid.Nil || v.Flattening && v.Trash != nil {
			c.fail("volume %d is being flattened without need", v.ID)
		}
		snapshots := c.count(bySeq, visible(v.ID)) + c.count(bySeq, hidden(v.ID))
		writers, readers := c.count(byHead, heads(v.ID, writer)), c.count(byHead, heads(v.ID, reader))
		if (v.Trash != nil || v.Purging) && snapshots+writers+readers > 0 {
			c.fail("volume %d is deleted but has %d snapshots and %d attachments", v.ID, snapshots, writers+readers)
		}
		if t := v.Trash; t != nil {
			unfinished := v.Parent != uuid.Nil
			if unfinished != (t.Task != nil) || unfinished && (t.Task.Volume != v.ID || t.Task.Destination != t.Path) {
				c.fail("volume %d is deleted with the wrong task: %+v", v.ID, t.Task)
			}
		}
		if v.Purging && (v.Parent != uuid.Nil || v.Path != "" || v.Garbage == 0) {
			c.fail("volume %d is purging but is still referred to, or won't be found: %+v", v.ID, v)
		}
		if eroding := writers > 0 && c.erodible(v); eroding != v.Eroding {
			c.fail("volume %d is eroding: %v, but its record says otherwise", v.ID, eroding)
		}
		if writers > 1 || writers == 1 && (readers > 0 || v.ReadOnly) {
			c.fail("volume %d has %d writers and %d readers", v.ID, writers, readers)
		}
	}
}

// ancestry checks what a volume reads through to.
func (c *checker) ancestry(v Volume) {
	if v.Parent == uuid.Nil {
		return
	}
	n, ok := load[Snapshot](c.State, v.Parent[:])
	if !ok {
		c.fail("volume %d has the parent %s, which does not exist", v.ID, v.Parent)
		return
	}
	if n.Status != SnapshotDone {
		c.fail("volume %d has the parent %s, which is being deleted", v.ID, v.Parent)
	}
	if source := c.volume(n.Volume); source.Root != v.Root || source.Layout != v.Layout || source.Pool != v.Pool {
		c.fail("volume %d lies elsewhere than volume %d, from which it was cloned", v.ID, source.ID)
	}
	if depth := c.depth(v); depth > chunk.MaxDepth {
		c.fail("volume %d is %d volumes deep", v.ID, depth)
	}
	if t, ok := load[Task](c.State, v.Origin.Task[:]); v.Trash == nil && (!ok || t.Destination != v.Path || t.Volume != v.ID) {
		c.fail("volume %d is not flattened and has lost its task %s", v.ID, v.Origin.Task)
	}
}

func (c *checker) snapshots() {
	for _, n := range all[Snapshot](c.State) {
		v, err := c.VolumeByID(n.Volume)
		if err != nil {
			c.fail("snapshot %s: %w", n.UUID, err)
			continue
		}
		if n.Seq >= v.Seq || !n.Lineage.Sees(n.Seq) || n.Lineage.Sees(n.Seq+1) {
			c.fail("snapshot %s froze %d of %d but sees %v", n.UUID, n.Seq, v.Seq, n.Lineage)
		}
		if n.User != v.User {
			c.fail("snapshot %s belongs to %s, its volume to %s", n.UUID, n.User, v.User)
		}
		clones := c.count(byParent, children(n.UUID, true)) + c.count(byParent, children(n.UUID, false))
		if n.Hidden && (clones == 0 || n.Status != SnapshotDone || n.Name != "") {
			c.fail("hidden snapshot %s is without use, or not as one must be: %+v", n.UUID, n)
		}
	}
}

// purges checks that all that is garbage is found, and nothing else.
func (c *checker) purges() {
	kept, deleted := map[chunk.VolumeID]int{}, map[chunk.VolumeID]int{} // snapshots
	for _, n := range all[Snapshot](c.State) {
		if c.purgeable(n) {
			deleted[n.Volume]++
		} else {
			kept[n.Volume]++
		}
	}
	purges := c.Purges()
	for _, v := range all[Volume](c.State) {
		needed := v.Garbage != 0 || deleted[v.ID] > 0
		if _, found := slices.BinarySearch(purges, v.ID); found != needed {
			c.fail("volume %d is to be purged: %v, but is found: %v", v.ID, needed, found)
		}
		views := 1 + kept[v.ID]
		if v.Purging {
			views = 0
		}
		if p, err := c.Purge(v.ID); err != nil || len(p.Views) != views || len(p.Snapshots) != deleted[v.ID] {
			c.fail("a purge of volume %d keeps %d views and ends %d snapshots, want %d and %d: %v",
				v.ID, len(p.Views), len(p.Snapshots), views, deleted[v.ID], err)
		}
		if v.Garbage > c.applied() {
			c.fail("volume %d has garbage of entry %d, which was not applied", v.ID, v.Garbage)
		}
	}
}

func (c *checker) attachments() {
	for _, a := range c.Attachments() {
		if a.ID > c.last(counterAttachment) {
			c.fail("attachment %d is beyond the counter", a.ID)
		}
		if _, err := c.VolumeByID(a.Volume); err != nil {
			c.fail("attachment %d: %w", a.ID, err)
		}
		if a.Snapshot == uuid.Nil {
			continue
		}
		if n, ok := load[Snapshot](c.State, a.Snapshot[:]); !ok || n.Volume != a.Volume || n.Hidden || !a.ReadOnly {
			c.fail("attachment %d is to the snapshot %s, which it can't be", a.ID, a.Snapshot)
		}
	}
}

func (c *checker) tasks() {
	type place struct {
		path string
		kind TaskType
	}
	held := map[place]uuid.UUID{}
	for _, t := range all[Task](c.State) {
		if t.Number == 0 || t.Number > c.last(counterTask) {
			c.fail("task %s has the number %d", t.UUID, t.Number)
		}
		p := place{t.Destination, t.Type}
		if other, ok := held[p]; ok {
			c.fail("tasks %s and %s are of one type and destination, %s", t.UUID, other, t.Destination)
		}
		held[p] = t.UUID
		if v, err := c.VolumeByID(t.Volume); err == nil && v.Trash == nil && !v.Purging && v.Path != t.Destination {
			c.fail("task %s is of %s, but its volume is at %s", t.UUID, t.Destination, v.Path)
		}
	}
}

func (c *checker) copysets() {
	for _, p := range all[pool](c.State) {
		if bits.OnesCount(uint(p.Copysets)) != 1 {
			c.fail("poolset %s has %d copysets", p.Name, p.Copysets)
		}
		for i, set := range c.Copysets(p.Name) {
			if set.ID != chunk.CopysetID(i) || set.Epoch == 0 {
				c.fail("poolset %s has copyset %d of epoch %d as number %d", p.Name, set.ID, set.Epoch, i)
			}
			if err := c.checkMembers(set); err != nil {
				c.fail("poolset %s: %w", p.Name, err)
			}
		}
	}
}
