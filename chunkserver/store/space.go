package store

import (
	"fmt"
	"maps"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Usage is how full a store is, in bytes.
type Usage struct {
	Used uint64 // by the blocks of layers
	Free uint64 // what Admit would grant: the reserve is taken off
}

// Usage tells how full the store is.
func (s *Store) Usage() (Usage, error) {
	free, err := s.fs.Free()
	if err != nil {
		return Usage{}, err
	}
	taken := uint64(s.opts.ReserveBytes + s.journal.queue.load())
	return Usage{
		Used: uint64(s.used.Load()) * chunk.BlockSize,
		Free: free - min(free, taken),
	}, nil
}

// Admit returns [ErrNoSpace] if n more bytes of data would eat the reserve.
// Whoever orders writes asks before; what is ordered is always accepted.
func (s *Store) Admit(n int) error {
	usage, err := s.Usage()
	if err != nil {
		return err
	}
	if uint64(n) > usage.Free {
		return fmt.Errorf("%w: %d bytes asked for, %d free besides the reserve", ErrNoSpace, n, usage.Free)
	}
	return nil
}

// load is the number of bytes accepted and not yet applied.
func (q *queue) load() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}

// Volumes returns the volumes, ascending, of which the store has layers.
func (s *Store) Volumes() ([]chunk.VolumeID, error) {
	inMemory := s.table.volumes()
	saved, err := s.meta.volumes()
	if err != nil {
		return nil, err
	}
	candidates := append(inMemory, saved...)
	slices.Sort(candidates)
	var volumes []chunk.VolumeID
	for _, volume := range slices.Compact(candidates) {
		indices, err := s.Chunks([]chunk.VolumeID{volume})
		if err != nil {
			return nil, err
		}
		if len(indices) > 0 {
			volumes = append(volumes, volume)
		}
	}
	return volumes, nil
}

// volumes returns the volumes of which layers are in memory.
func (t *table) volumes() []chunk.VolumeID {
	set := make(map[chunk.VolumeID]struct{})
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		for ref, c := range s.columns {
			if c.holdsLayers() {
				set[ref.Volume] = struct{}{}
			}
		}
		s.mu.RUnlock()
	}
	return slices.Collect(maps.Keys(set))
}

// Chunks returns the indices, ascending, of the chunks of which the store has
// a layer in any of the volumes.
func (s *Store) Chunks(volumes []chunk.VolumeID) ([]uint32, error) {
	indices := make(map[uint32]struct{})
	for _, volume := range volumes {
		// What is not in the database yet is in memory until it is, so
		// memory has to be looked at first.
		inMemory := s.table.refs(volume)
		for ref, holds := range inMemory {
			if holds {
				indices[ref.Index] = struct{}{}
			}
		}
		err := s.meta.refs(volume, func(ref chunk.Ref) {
			if _, ok := inMemory[ref]; !ok {
				indices[ref.Index] = struct{}{}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	sorted := make([]uint32, 0, len(indices))
	for index := range indices {
		sorted = append(sorted, index)
	}
	slices.Sort(sorted)
	return sorted, nil
}

// refs tells of the columns of a volume in memory whether they have layers.
func (t *table) refs(volume chunk.VolumeID) map[chunk.Ref]bool {
	refs := make(map[chunk.Ref]bool)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		for ref, c := range s.columns {
			if ref.Volume == volume {
				refs[ref] = c.holdsLayers()
			}
		}
		s.mu.RUnlock()
	}
	return refs
}
