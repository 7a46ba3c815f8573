package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"
	"strconv"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Finding is something that Check found wrong.
type Finding struct {
	Ref    chunk.Ref
	Seq    chunk.Seq
	Block  int // -1: the layer as a whole
	Reason string
}

func (f Finding) String() string {
	if f.Block < 0 {
		return fmt.Sprintf("%v: %s", layerID{f.Ref, f.Seq}, f.Reason)
	}
	return fmt.Sprintf("block %d of %v: %s", f.Block, layerID{f.Ref, f.Seq}, f.Reason)
}

// Check compares every block, as the medium has it, with its checksum, and
// the metadata with the files. It calls report for what it finds; its error is
// about Check itself. It may run beside everything else.
func (s *Store) Check(ctx context.Context, report func(Finding)) error {
	if err := s.Checkpoint(ctx); err != nil {
		return err
	}
	names, err := s.fs.List(layerDir)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	volumes, err := s.meta.volumes()
	if err != nil {
		return err
	}
	for _, name := range names {
		volume, err := strconv.ParseUint(name, 16, 64)
		if err != nil || volumeDir(chunk.VolumeID(volume)) != layerDir+"/"+name {
			report(Finding{Block: -1, Reason: fmt.Sprintf("directory %s/%s is not a volume's", layerDir, name)})
			continue
		}
		if !slices.Contains(volumes, chunk.VolumeID(volume)) {
			volumes = append(volumes, chunk.VolumeID(volume))
		}
	}
	for _, volume := range volumes {
		if err := s.checkVolume(ctx, volume, report); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) checkVolume(ctx context.Context, volume chunk.VolumeID, report func(Finding)) error {
	files, err := s.fs.List(volumeDir(volume))
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	for _, name := range files {
		id, ok := parseLayerName(volume, name)
		if !ok {
			report(Finding{Ref: chunk.Ref{Volume: volume}, Block: -1, Reason: fmt.Sprintf("file %q is not a layer's", name)})
			continue
		}
		if owned, err := s.ownsFile(id); err != nil {
			return err
		} else if !owned {
			report(Finding{id.ref, id.seq, -1, "file of a layer that does not exist"})
		}
	}
	indices, err := s.Chunks([]chunk.VolumeID{volume})
	if err != nil {
		return err
	}
	for _, index := range indices {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.checkChunk(chunk.Ref{Volume: volume, Index: index}, report); err != nil {
			return err
		}
	}
	return nil
}

// ownsFile reports whether the layer has data, or a file that is to be freed.
func (s *Store) ownsFile(id layerID) (bool, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.needless[id] != nil {
		return true, nil
	}
	sh := s.table.shard(id.ref.Index)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c, err := sh.column(id.ref)
	if err != nil {
		return false, err
	}
	l := c.layer(id.seq)
	return l != nil && l.blocks() > 0, nil
}

// checkChunk checks one chunk while it does not change.
func (s *Store) checkChunk(ref chunk.Ref, report func(Finding)) error {
	sh := s.table.shard(ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	sh.mu.Lock()
	c, err := sh.column(ref)
	var layers []layer
	if err == nil {
		for _, l := range c.layers {
			layers = append(layers, *l)
		}
	}
	sh.trim()
	sh.mu.Unlock()
	if err != nil {
		return err
	}
	for i := range layers {
		if err := s.checkLayer(&layers[i], report); err != nil {
			return err
		}
	}
	return nil
}

// checkLayer reads all blocks of a layer. The shard's io must be held, so
// nothing changes.
func (s *Store) checkLayer(l *layer, report func(Finding)) error {
	if l.blocks() == 0 {
		return nil
	}
	found := func(block int, reason string) { report(Finding{l.id.ref, l.id.seq, block, reason}) }
	file, err := s.files.reading(l.id)
	if errors.Is(err, fs.ErrNotExist) {
		found(-1, "the file is missing")
		return nil
	}
	if err != nil {
		return fmt.Errorf("check %v: %w", l.id, err)
	}
	defer s.files.release(file)
	file.Uncache(0, chunk.Size)
	content := make([]byte, chunk.BlockSize)
	for i, p := range l.parts {
		if p == nil {
			continue
		}
		for m := p.data; m != 0; m &= m - 1 {
			b := i*partBlocks + bits.TrailingZeros64(m)
			if err := file.ReadAt(content, int64(b)*chunk.BlockSize); err != nil {
				found(b, err.Error())
			} else if !l.id.matches(content, b, p.sums[b%partBlocks]) {
				found(b, "content does not match the checksum")
			}
		}
	}
	return nil
}
