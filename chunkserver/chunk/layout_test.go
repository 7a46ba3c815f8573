package chunk

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func anyLayout(t *rapid.T) Layout {
	if rapid.Bool().Draw(t, "plain") {
		return Layout{}
	}
	return Layout{
		Unit:  BlockSize << rapid.IntRange(0, 12).Draw(t, "unit"),
		Count: rapid.Uint64Range(1, MaxStripes).Draw(t, "count"),
	}
}

// Every byte of a volume has a place of its own: following the runs from any
// offset on never leads to a place twice, and stays within the chunks.
func TestLayoutIsOneToOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLayout(t)
		if err := l.Validate(); err != nil {
			t.Fatal(err)
		}
		const window = 3 * MaxStripes // runs
		off := rapid.Uint64Range(0, 40*Size).Draw(t, "off")
		type place struct{ index, in uint32 }
		used := make(map[place]uint64)
		for range window {
			index, in, run := l.Locate(off)
			if run == 0 || uint64(in)+uint64(run) > Size {
				t.Fatalf("%+v: run of %d bytes at %d of chunk %d", l, run, in, index)
			}
			if other, ok := used[place{index, in}]; ok {
				t.Fatalf("%+v: %d and %d both lie at %d of chunk %d", l, other, off, in, index)
			}
			used[place{index, in}] = off
			if index >= l.Chunks(off+1) {
				t.Fatalf("%+v: chunk %d of a volume with %d chunks", l, index, l.Chunks(off+1))
			}
			// Within the run, offset and place go in parallel.
			within := rapid.Uint64Range(0, uint64(run)-1).Draw(t, "within")
			i2, in2, run2 := l.Locate(off + within)
			if i2 != index || uint64(in2) != uint64(in)+within || uint64(run2) != uint64(run)-within {
				t.Fatalf("%+v: byte %d of the run at %d lies at %d of chunk %d", l, within, off, in2, i2)
			}
			off += uint64(run)
		}
	})
}

// A whole set of chunks is filled without gaps.
func TestLayoutFillsChunks(t *testing.T) {
	for _, l := range []Layout{{}, {BlockSize, 3}, {64 << 10, 4}, {1 << 20, MaxStripes}, {Size, 2}, {4 << 20, 1}} {
		t.Run(fmt.Sprintf("%+v", l), func(t *testing.T) {
			size := max(l.Count, 1) * Size
			filled := make(map[uint32]uint64)
			for off := uint64(0); off < size; {
				index, _, run := l.Locate(off)
				filled[index] += uint64(run)
				off += uint64(run)
			}
			for index := range l.Chunks(size) {
				if filled[index] != Size {
					t.Errorf("chunk %d got %d bytes", index, filled[index])
				}
			}
			if n := uint32(len(filled)); n != l.Chunks(size) {
				t.Errorf("%d chunks used, %d expected", n, l.Chunks(size))
			}
		})
	}
}

func TestLayoutValidate(t *testing.T) {
	for _, l := range []Layout{
		{Unit: BlockSize}, {Count: 2}, {Unit: 100, Count: 2}, {Unit: 3 * BlockSize, Count: 2},
		{Unit: 2 * Size, Count: 2}, {Unit: BlockSize, Count: MaxStripes + 1},
	} {
		if l.Validate() == nil {
			t.Errorf("%+v is accepted", l)
		}
	}
}

// Data is found by Locate: its results must never change.
func TestLocateIsStable(t *testing.T) {
	for _, test := range []struct {
		root  VolumeID
		index uint32
		want  CopysetID
	}{
		{1, 0, 42},
		{1, 1, 21},
		{1, 7, 21},
		{1, 1073741824, 33},
		{2, 0, 23},
		{2, 1, 58},
		{2, 7, 17},
		{2, 1073741824, 3},
		{3, 0, 3},
		{3, 1, 35},
		{3, 7, 0},
		{3, 1073741824, 32},
		{1099511627776, 0, 12},
		{1099511627776, 1, 34},
		{1099511627776, 7, 62},
		{1099511627776, 1073741824, 6},
	} {
		if got := Locate(test.root, test.index, 64); got != test.want {
			t.Errorf("chunk %d of root %d lies in copyset %d, was %d", test.index, test.root, got, test.want)
		}
	}
}

func TestLocateSpreads(t *testing.T) {
	const copysets, volumes, chunks = 64, 100, 100
	count := make([]int, copysets)
	for root := range VolumeID(volumes) {
		for index := range uint32(chunks) {
			id := Locate(root+1, index, copysets)
			if id >= copysets {
				t.Fatalf("copyset %d of %d", id, copysets)
			}
			count[id]++
		}
	}
	mean := volumes * chunks / copysets
	for id, n := range count {
		if n < mean*6/10 || n > mean*14/10 {
			t.Errorf("copyset %d got %d chunks, the mean is %d", id, n, mean)
		}
	}
}
