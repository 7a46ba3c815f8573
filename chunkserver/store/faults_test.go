package store

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// After any failure of the disk nothing is acknowledged any more, every call
// says why, and what was acknowledged is there after a restart.
func TestFailureIsFinal(t *testing.T) {
	for failing, fault := range map[string]error{
		"sync journal": errFault, "write journal": errFault,
		"write layers": errFault, "create layers": errFault, "sync layers": errFault, "syncdir layers": errFault,
		"write meta.db": unix.EPERM,
	} {
		t.Run(failing, func(t *testing.T) {
			t.Parallel()
			d := newDisk()
			s := mustOpen(t, "", onDisk(d))
			c := &client{Store: s}
			c.must(t, writeOp(ref10, 1, 0, filled(1, 1)))
			d.fail(failing)
			err := c.do(writeOp(ref10, 2, 0, filled(1, 2)))
			acked := err == nil
			if acked {
				err = s.Checkpoint(context.Background())
			}
			if !errors.Is(err, ErrStopped) || !errors.Is(err, fault) {
				t.Fatalf("error %v, want the fault as the end of the store", err)
			}
			select {
			case <-s.Failed():
			default:
				t.Error("Failed is not closed")
			}
			d.fail("")
			for what, err := range map[string]error{
				"Err":        s.Err(),
				"Append":     c.do(writeOp(ref10, 2, 0, filled(1, 3))),
				"ReadAt":     s.ReadAt(head(1), ref10, make([]byte, chunk.BlockSize), 0),
				"Checkpoint": s.Checkpoint(context.Background()),
			} {
				if !errors.Is(err, ErrStopped) || !errors.Is(err, fault) {
					t.Errorf("%s after the failure: %v", what, err)
				}
			}
			d.kill(s)
			d.heal()
			c.Store = mustOpen(t, "", onDisk(d))
			got := c.mustRead(t, head(1), 0, 0, 1)
			if acked && got[0] != 2 || got[0] != 1 && got[0] != 2 {
				t.Errorf("after a restart: block of %d", got[0])
			}
		})
	}
}

// A block that is not what was written there is never returned, whatever
// happened to it.
func TestDamagedBlocksAreNotReturned(t *testing.T) {
	for name, damage := range map[string]func(d *disk, file string){
		"flipped bit": func(d *disk, file string) { d.corrupt(file, 1*chunk.BlockSize+17) },
		"lost write":  func(d *disk, file string) { d.poke(file, chunk.BlockSize, filled(1, 1)) },
		"zeros":       func(d *disk, file string) { d.poke(file, chunk.BlockSize, filled(1, 0)) },
		"another block": func(d *disk, file string) {
			d.poke(file, chunk.BlockSize, d.peek(file, 2*chunk.BlockSize, chunk.BlockSize))
		},
		"another layer": func(d *disk, file string) {
			d.poke(file, chunk.BlockSize, d.peek(layerID{ref10, 2}.name(), chunk.BlockSize, chunk.BlockSize))
		},
		"file is missing": func(d *disk, file string) { d.Remove(file) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDisk()
			s := mustOpen(t, "", onDisk(d))
			c := &client{Store: s}
			c.must(t, writeOp(ref10, 1, 1, filled(1, 1)))
			c.must(t, writeOp(ref10, 1, 0, filled(1, 10)))
			c.must(t, writeOp(ref10, 1, 1, filled(2, 11)))
			c.must(t, writeOp(ref10, 2, 1, filled(1, 11))) // as in layer 1, but another place
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			file := layerID{ref10, 1}.name()
			damage(d, file)
			if name == "another block" || name == "another layer" {
				// The same bytes are the right bytes.
				d.poke(file, chunk.BlockSize, filled(1, 12))
			}
			s = mustOpen(t, "", onDisk(d))
			old := chunk.NewView(1, chunk.NewLineage().Freeze(1), nil)
			p := make([]byte, 3*chunk.BlockSize)
			if err := s.ReadAt(old, ref10, p, 0); !errors.Is(err, ErrDamaged) {
				t.Errorf("read over the damaged block: %v", err)
			}
			var findings []Finding
			if err := s.Check(context.Background(), func(f Finding) { findings = append(findings, f) }); err != nil {
				t.Fatal(err)
			}
			if len(findings) != 1 || findings[0].Ref != ref10 || findings[0].Seq != 1 {
				t.Errorf("check found %v", findings)
			}
			if name == "file is missing" {
				return
			}
			if err := s.ReadAt(old, ref10, p[:chunk.BlockSize], 0); err != nil || p[0] != 10 {
				t.Errorf("the block beside it: %v, %v", p[0], err)
			}
			if err := s.ReadAt(head(1), ref10, p, 0); err != nil {
				t.Errorf("a view that does not show the damaged block: %v", err)
			}
		})
	}
}

// A damaged block comes back from a peer, and nothing else is accepted for it.
func TestRepair(t *testing.T) {
	d := newDisk()
	s := mustOpen(t, "", onDisk(d))
	c := &client{Store: s}
	c.must(t, writeOp(ref10, 1, 5, filled(1, 1)))
	c.must(t, zeroOp(ref10, 1, 6, 1))
	must(t, s.Close())
	d.corrupt(layerID{ref10, 1}.name(), 5*chunk.BlockSize)
	s = mustOpen(t, "", onDisk(d))
	c.Store = s
	for name, err := range map[string]error{
		"other content": s.Repair(ref10, 1, 5, filled(1, 2)),
		"zero block":    s.Repair(ref10, 1, 6, filled(1, 0)),
		"absent block":  s.Repair(ref10, 1, 7, filled(1, 1)),
		"other layer":   s.Repair(ref10, 2, 5, filled(1, 1)),
		"half a block":  s.Repair(ref10, 1, 5, filled(1, 1)[:100]),
		"no block":      s.Repair(ref10, 1, chunk.Blocks, filled(1, 1)),
	} {
		if !errors.Is(err, chunk.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	blocks, err := s.Blocks(ref10, 1)
	must(t, err)
	if want := (Block{Data: true, Sum: chunk.Checksum(filled(1, 1))}); blocks[5] != want || blocks[6] != (Block{Zero: true}) || blocks[7] != (Block{}) {
		t.Errorf("blocks %+v", blocks[5:8])
	}
	must(t, s.Repair(ref10, 1, 5, filled(1, 1)))
	for range 2 {
		only := chunk.NewView(1, chunk.Lineage{{From: 1, To: 1}}, nil)
		if got := c.mustRead(t, only, 0, 5, 1); !bytes.Equal(got, filled(1, 1)) {
			t.Error("the repaired block differs")
		}
		must(t, s.Check(context.Background(), func(f Finding) { t.Error(f) }))
		d.kill(s)
		s = mustOpen(t, "", onDisk(d))
		c.Store = s
	}
}

// The checksum in the metadata belongs to one place: the same content
// elsewhere has another one.
func TestChecksumsAreMixedWithTheirPlace(t *testing.T) {
	seen := make(map[uint32]layerID)
	for volume := range chunk.VolumeID(6) {
		for index := range uint32(6) {
			for seq := range chunk.Seq(6) {
				for block := range 50 {
					id := layerID{chunk.Ref{Volume: volume, Index: index}, seq}
					if other, ok := seen[id.mix(block)]; ok && other != id {
						t.Fatalf("block %d of %v is mixed like one of %v", block, id, other)
					}
					seen[id.mix(block)] = id
				}
			}
		}
	}
}

// A full store refuses before anything is ordered, applies what was, and can
// be emptied.
func TestFullDisk(t *testing.T) {
	d := newDisk()
	opts := onDisk(d)
	opts.ReserveBytes = 2 << 20
	s := mustOpen(t, "", opts)
	d.mu.Lock()
	d.capacity = d.pages + (4<<20)/chunk.BlockSize
	d.mu.Unlock()
	c := &client{Store: s}
	written := 0
	for s.Admit(16*chunk.BlockSize) == nil {
		c.must(t, writeOp(ref10, 1, written%4096, filled(16, 1)))
		written += 16
		if written > 10000 {
			t.Fatal("the disk never gets full")
		}
	}
	if err := s.Admit(16 * chunk.BlockSize); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("error %v", err)
	}
	full, err := s.Usage()
	if err != nil || full.Used != uint64(written)*chunk.BlockSize {
		t.Errorf("usage %+v, %v; want %d used", full, err, written*chunk.BlockSize)
	}
	c.must(t, writeOp(ref10, 1, 0, filled(16, 2))) // ordered already
	if got := c.mustRead(t, head(1), 0, 0, 1); !bytes.Equal(got, filled(1, 2)) {
		t.Error("read differs")
	}
	c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: ref10, UpTo: chunk.MaxSeq})
	s.Committed(0, c.lsn)
	if err := s.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := s.Admit(written / 2 * chunk.BlockSize); err != nil {
		t.Errorf("after everything was deleted: %v", err)
	}
}
