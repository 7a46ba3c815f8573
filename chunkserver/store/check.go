package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Finding is something that Check found wrong.
type Finding struct {
	Ref    chunk.Ref // of volume 0: the store as a whole
	Seq    chunk.Seq
	Block  int // -1: the layer as a whole
	Reason string
}

func (f Finding) String() string {
	if f.Ref.Volume == 0 {
		return f.Reason
	}
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
	return s.check(ctx, report, unpaced)
}

func (s *Store) check(ctx context.Context, report func(Finding), pace func(context.Context, int) error) error {
	volumes, err := s.Volumes()
	if err != nil {
		return err
	}
	names, err := s.fs.List(layerDir)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	for _, name := range names {
		volume, ok := parseVolumeDir(name)
		if !ok {
			report(Finding{Block: -1, Reason: fmt.Sprintf("directory %s/%s is not a volume's", layerDir, name)})
		} else if !slices.Contains(volumes, volume) {
			volumes = append(volumes, volume)
		}
	}
	for _, volume := range volumes {
		if err := s.checkVolume(ctx, volume, report, pace); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) checkVolume(ctx context.Context, volume chunk.VolumeID, report func(Finding), pace func(context.Context, int) error) error {
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
		if owned, err := s.ownsFile(id); errors.Is(err, ErrDamaged) {
			continue // all of its chunk is, which is found below
		} else if err != nil {
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
		ref := chunk.Ref{Volume: volume, Index: index}
		err := s.checkChunk(ctx, ref, report, pace)
		if errors.Is(err, ErrDamaged) {
			report(Finding{Ref: ref, Block: -1, Reason: err.Error()})
		} else if err != nil {
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

// checkChunk checks the blocks of one chunk. It calls pace after it has looked
// at some.
func (s *Store) checkChunk(ctx context.Context, ref chunk.Ref, report func(Finding), pace func(context.Context, int) error) error {
	var layers []chunk.Seq
	err := s.inspect(ref, func(c *column) {
		for _, l := range c.layers {
			if l.empty() {
				continue
			}
			layers = append(layers, l.id.seq)
			if l.sum != l.summed() {
				report(Finding{ref, l.id.seq, -1, "the digest is not that of the blocks"})
			}
		}
	})
	if err != nil {
		return err
	}
	for _, seq := range layers {
		for i := range parts {
			looked, err := s.checkPart(layerID{ref, seq}, i, report)
			if err != nil {
				return err
			}
			if err := pace(ctx, looked); err != nil {
				return err
			}
		}
	}
	return nil
}

// unpaced is the pace of who is waited for.
func unpaced(ctx context.Context, _ int) error { return ctx.Err() }

// inspect calls fn with the column of a chunk.
func (s *Store) inspect(ref chunk.Ref, fn func(*column)) error {
	if err := s.failure(); err != nil {
		return stopped(err)
	}
	sh := s.table.shard(ref.Index)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c, err := sh.column(ref)
	if err != nil {
		return err
	}
	fn(c)
	sh.trim()
	return nil
}

// checkPart checks the blocks of one part, and returns how many there were.
// Those that seem wrong may have changed between the looks at metadata and
// file: they are looked at again while nothing changes. So operations wait for
// a look at the medium only where there is damage. What is found is reported
// when they go on, as it may then be repaired.
func (s *Store) checkPart(id layerID, i int, report func(Finding)) (looked int, err error) {
	looked, wrong, err := s.lookAt(id, i, ^uint64(0), func(Finding) {})
	if err != nil || wrong == 0 {
		return looked, err
	}
	var found []Finding
	sh := s.table.shard(id.ref.Index)
	sh.io.Lock()
	_, _, err = s.lookAt(id, i, wrong, func(f Finding) { found = append(found, f) })
	sh.io.Unlock()
	for _, f := range found {
		report(f)
	}
	return looked, err
}

// lookAt compares those blocks of a part that are in mask with their
// checksums. It returns how many have data, and which of them are wrong.
func (s *Store) lookAt(id layerID, i int, mask uint64, report func(Finding)) (looked int, wrong uint64, err error) {
	var p part
	err = s.inspect(id.ref, func(c *column) {
		if l := c.layer(id.seq); l != nil && l.parts[i] != nil {
			p = *l.parts[i]
		}
	})
	p.data &= mask
	if err != nil || p.data == 0 {
		return 0, 0, err
	}
	found := func(in int, reason string) {
		wrong |= 1 << in
		report(Finding{id.ref, id.seq, i*partBlocks + in, reason})
	}
	file, err := s.files.reading(id)
	if errors.Is(err, fs.ErrNotExist) {
		found(bits.TrailingZeros64(p.data), "the file of the layer is missing")
		return 0, wrong, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("check %v: %w", id, err)
	}
	defer s.files.release(file)
	const n = partBlocks * chunk.BlockSize
	file.Uncache(int64(i)*n, n)
	content := make([]byte, chunk.BlockSize)
	for m := p.data; m != 0; m &= m - 1 {
		in := bits.TrailingZeros64(m)
		b := i*partBlocks + in
		if err := file.ReadAt(content, int64(b)*chunk.BlockSize); err != nil {
			found(in, err.Error())
		} else if !id.matches(content, b, p.sums[in]) {
			found(in, "content does not match the checksum")
		}
	}
	return bits.OnesCount64(p.data), wrong, nil
}

// Repair puts back the content of a damaged block, which a peer has supplied.
// It refuses what does not match the checksum that is stored here, so it can't
// make anything worse; nor is it an operation: no history changes.
func (s *Store) Repair(ref chunk.Ref, seq chunk.Seq, block int, content []byte) error {
	if block < 0 || block >= chunk.Blocks || len(content) != chunk.BlockSize {
		return fmt.Errorf("%w: repair of block %d with %d bytes", chunk.ErrInvalid, block, len(content))
	}
	id := layerID{ref, seq}
	sh := s.table.shard(ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	var data bool
	var sum uint32
	err := s.inspect(ref, func(c *column) {
		if l := c.layer(seq); l != nil {
			data, _, sum = l.state(block)
		}
	})
	if err != nil {
		return err
	}
	if !data || !id.matches(content, block, sum) {
		return fmt.Errorf("%w: this is not the content of block %d of %v", chunk.ErrInvalid, block, id)
	}
	file, err := s.files.writing(id)
	if err != nil {
		return fmt.Errorf("repair block %d of %v: %w", block, id, err)
	}
	defer s.files.wrote(file)
	if err := file.WriteAt(int64(block)*chunk.BlockSize, content); err != nil {
		s.fail(err)
		return stopped(err)
	}
	s.log.Warn("block repaired", "layer", id, "block", block)
	return nil
}
