package fsm

import (
	"slices"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Purge is the work of freeing what no view of a volume sees. It can be done
// again, and by several at once, without harm.
type Purge struct {
	Volume    Volume
	Views     []*chunk.View // all that exist, without parents, the head frozen at Volume.Seq; none of a purging volume
	UpTo      chunk.Seq     // up to which Views is complete
	Snapshots []uuid.UUID   // whose deletion it completes
}

// Done is the command that reports it done.
func (p Purge) Done() PurgeDone {
	return PurgeDone{Volume: p.Volume.ID, Garbage: p.Volume.Garbage, Snapshots: p.Snapshots}
}

// PurgeProgress reports how far the deletion of some snapshots has come.
type PurgeProgress struct {
	Snapshots []uuid.UUID
	Percent   int // 0 to 100
}

// PurgeDone reports that everything a Purge named is free. A purging volume is
// gone by it, and so are the snapshots. What has become garbage since stays to
// be purged.
type PurgeDone struct {
	Volume    chunk.VolumeID
	Garbage   uint64
	Snapshots []uuid.UUID
}

// Purges lists the volumes that have something to purge now. A deleted snapshot
// that is still being read must wait.
func (s *State) Purges() []chunk.VolumeID {
	volumes := s.ids(byGarbage, "")
	for _, id := range s.uuids(byDeletion, "") {
		if n := s.snapshot(id); s.purgeable(n) {
			volumes = append(volumes, n.Volume)
		}
	}
	slices.Sort(volumes)
	return slices.Compact(volumes)
}

// Purge returns the work that is to be done on a volume.
func (s *State) Purge(id chunk.VolumeID) (Purge, error) {
	v, err := s.VolumeByID(id)
	if err != nil {
		return Purge{}, err
	}
	p := Purge{Volume: v, Views: []*chunk.View{}, UpTo: chunk.MaxSeq, Snapshots: []uuid.UUID{}}
	if v.Purging {
		return p, nil
	}
	p.Views, p.UpTo = s.views(v, nil), v.Seq
	for _, id := range s.uuids(byDeletion, number(v.ID)) {
		if s.purgeable(s.snapshot(id)) {
			p.Snapshots = append(p.Snapshots, id)
		}
	}
	return p, nil
}

func (c PurgeProgress) apply(s *State) (any, error) {
	if err := checkPercent(c.Percent); err != nil {
		return nil, err
	}
	for _, id := range c.Snapshots {
		if n, ok := load[Snapshot](s, id[:]); ok && n.Status == SnapshotDeleting {
			n.Progress = max(n.Progress, c.Percent)
			put(s, n)
		}
	}
	return nil, nil
}

func checkPercent(percent int) error {
	if percent < 0 || percent > 100 {
		return refuse(InvalidArgument, "a progress of %d percent", percent)
	}
	return nil
}

func (c PurgeDone) apply(s *State) (any, error) {
	v, ok := load[Volume](s, Volume{ID: c.Volume}.key())
	if !ok {
		return nil, nil
	}
	for _, id := range c.Snapshots {
		n, ok := load[Snapshot](s, id[:])
		if ok && (n.Volume != v.ID || !s.purgeable(n)) {
			return nil, refuse(BadStatus, "snapshot %s of %s can still be read", id, v.Path)
		}
	}
	for _, id := range c.Snapshots {
		remove(s, Snapshot{UUID: id})
	}
	switch {
	case v.Garbage != c.Garbage:
	case v.Purging:
		remove(s, v)
	case v.Garbage != 0:
		v.Garbage = 0
		put(s, v)
	}
	return nil, nil
}
