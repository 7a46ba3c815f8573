package fsm

import (
	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Attachment is the right of a gateway to use a volume's head or a snapshot.
type Attachment struct {
	ID       uint64 // counts up; never used again
	Volume   chunk.VolumeID
	Snapshot uuid.UUID // nil for the head
	ReadOnly bool
	Gateway  string    // says who holds it, to people
	Session  uuid.UUID // of the gateway
	Turn     uint64    // of the writer; grows with each Resume, so that a pause that was begun before it can't be used
}

func (a Attachment) table() string { return "attachments" }

func (a Attachment) key() []byte { return []byte(number(a.ID)) }

func (a Attachment) entries() []entry {
	switch {
	case a.Snapshot != uuid.Nil:
		return []entry{{byReader, string(a.Snapshot[:]), number(a.ID), ""}}
	case a.ReadOnly:
		return []entry{{byHead, heads(a.Volume, reader), number(a.ID), ""}}
	}
	return []entry{{byHead, heads(a.Volume, writer), number(a.ID), ""}}
}

const (
	writer = "w"
	reader = "r"
)

// heads is the group of the attachments of a volume's head, as writer or reader.
func heads(id chunk.VolumeID, as string) string { return number(id) + as }

// Context is what an attached gateway works with.
type Context struct {
	Attachment Attachment
	Volume     Volume // with the snapshot's size, if one is attached
	Token      chunk.Token
	View       *chunk.View
}

// Attach gives a gateway a volume or snapshot. A volume has one writer, or any
// number of readers. Its value is the Context.
type Attach struct {
	Path     string
	Snapshot string // name; empty for the head
	ReadOnly bool
	Gateway  string
	Session  uuid.UUID
}

// Resume continues an attachment and voids a pause that was begun before. Its
// value is the Context.
type Resume struct {
	Attachment uint64
}

// Detach ends an attachment. One that doesn't exist has ended already.
type Detach struct {
	Attachment uint64
}

// Context returns what an attachment works with at present.
func (s *State) Context(attachment uint64) (Context, error) {
	a, ok := load[Attachment](s, Attachment{ID: attachment}.key())
	if !ok {
		return Context{}, refuse(NotExist, "attachment %d does not exist", attachment)
	}
	return s.context(a), nil
}

func (s *State) context(a Attachment) Context {
	v := s.volume(a.Volume)
	c := Context{Attachment: a, Volume: v, Token: chunk.Token{Attachment: a.ID, Seq: v.Seq}}
	lineage := v.Lineage
	if a.Snapshot != uuid.Nil {
		n := s.snapshot(a.Snapshot)
		c.Volume.Size, lineage = n.Size, n.Lineage
	}
	c.View = chunk.NewView(v.ID, lineage, s.below(v))
	return c
}

// Writer returns the attachment that may write to a volume, if there is one.
func (s *State) Writer(id chunk.VolumeID) (a Attachment, ok bool) {
	s.scan(byHead, heads(id, writer), "", func(key, _ []byte) bool {
		a, ok = load[Attachment](s, key)
		return false
	})
	return a, ok
}

// Attachments lists all attachments, in the order of their ids.
func (s *State) Attachments() []Attachment { return all[Attachment](s) }

func (c Attach) apply(s *State) (any, error) {
	if err := checkPath(c.Path); err != nil {
		return nil, err
	}
	a := Attachment{ReadOnly: c.ReadOnly, Gateway: c.Gateway, Session: c.Session, Turn: 1}
	var err error
	if c.Snapshot != "" {
		a.Volume, a.Snapshot, err = s.attachable(c)
	} else {
		a.Volume, err = s.attachableHead(c)
	}
	if err != nil {
		return nil, err
	}
	a.ID = s.next(counterAttachment)
	put(s, a)
	s.erode(a.Volume)
	return s.context(a), nil
}

// attachable returns the snapshot that is to be attached, and its volume.
func (s *State) attachable(c Attach) (chunk.VolumeID, uuid.UUID, error) {
	n, err := s.Snapshot(Root, c.Path, c.Snapshot)
	switch {
	case err != nil:
		return 0, uuid.Nil, err
	case !c.ReadOnly:
		return 0, uuid.Nil, refuse(Unsupported, "snapshot %s of %s can only be read", c.Snapshot, c.Path)
	case n.Status != SnapshotDone:
		return 0, uuid.Nil, refuse(InvalidSnapshot, "snapshot %s of %s is being deleted", c.Snapshot, c.Path)
	}
	return n.Volume, n.UUID, nil
}

// attachableHead returns the volume that is to be attached.
func (s *State) attachableHead(c Attach) (chunk.VolumeID, error) {
	v, err := s.liveVolume(Root, c.Path)
	if err != nil {
		return 0, err
	}
	if _, ok := s.Writer(v.ID); ok {
		return 0, refuse(Occupied, "%s has a writer", c.Path)
	}
	if c.ReadOnly {
		return v.ID, nil
	}
	if v.ReadOnly {
		return 0, refuse(Unsupported, "%s can only be read", c.Path)
	}
	if s.count(byHead, heads(v.ID, reader)) > 0 {
		return 0, refuse(Occupied, "%s has readers", c.Path)
	}
	v.Recovered = uuid.Nil
	put(s, v)
	return v.ID, nil
}

func (c Resume) apply(s *State) (any, error) {
	a, ok := load[Attachment](s, Attachment{ID: c.Attachment}.key())
	if !ok {
		return nil, refuse(NotExist, "attachment %d does not exist", c.Attachment)
	}
	a.Turn++
	put(s, a)
	return s.context(a), nil
}

func (c Detach) apply(s *State) (any, error) {
	if a, ok := load[Attachment](s, Attachment{ID: c.Attachment}.key()); ok {
		remove(s, a)
		s.erode(a.Volume)
	}
	return nil, nil
}
