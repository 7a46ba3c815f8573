package fsm

import (
	"fmt"
	"testing"
)

func BenchmarkApply(b *testing.B) {
	f := open(b)
	b.ReportAllocs()
	for b.Loop() {
		do100(b, f)
	}
}

// do100 makes a hundred volumes in one batch.
func do100(b *testing.B, f *FSM) {
	var batch []Entry
	for i := range uint64(100) {
		index := f.Applied() + 1 + i
		batch = append(batch, Entry{index, Encode(CreateVolume{User: "ann", Path: fmt.Sprintf("/%d", index), Size: gib})})
	}
	for _, r := range f.Apply(batch) {
		if r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}

// BenchmarkList reads a directory of 100,000 volumes: single pages, and all of
// it page by page.
func BenchmarkList(b *testing.B) {
	f := open(b)
	for range 1000 {
		do100(b, f)
	}
	const total = 100_001
	list := func(b *testing.B, p Page, want int) {
		f.View(func(s *State) error {
			files, n, err := s.List("ann", "/", p)
			if len(files) != want || n != total || err != nil {
				b.Fatalf("%d of %d files, %v", len(files), n, err)
			}
			return nil
		})
	}
	for _, offset := range []int{0, total / 2, total - 10} {
		b.Run(fmt.Sprintf("offset=%d", offset), func(b *testing.B) {
			for b.Loop() {
				list(b, Page{Offset: offset, Limit: 10}, 10)
			}
		})
	}
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			for offset := 0; offset < total; offset += 10 {
				list(b, Page{Offset: offset, Limit: 10}, min(10, total-offset))
			}
		}
	})
}

// BenchmarkSnapshots works on a volume with 1,024 snapshots.
func BenchmarkSnapshots(b *testing.B) {
	f := open(b)
	var batch []Entry
	batch = append(batch, Entry{1, Encode(CreateVolume{User: "ann", Path: "/a", Size: gib})})
	for i := range uint64(1024) {
		batch = append(batch, Entry{2 + i, Encode(CreateSnapshot{User: "ann", Path: "/a", Name: fmt.Sprint(i), UUID: id(1 + i)})})
	}
	f.Apply(batch)
	for _, offset := range []int{0, 507, 1014} {
		b.Run(fmt.Sprintf("offset=%d", offset), func(b *testing.B) {
			for b.Loop() {
				f.View(func(s *State) error {
					list, total, err := s.Snapshots(SnapshotFilter{Path: "/a"}, Page{Offset: offset, Limit: 10})
					if len(list) != 10 || total != 1024 || err != nil {
						b.Fatalf("%d of %d, %v", len(list), total, err)
					}
					return nil
				})
			}
		})
	}
	b.Run("purge", func(b *testing.B) {
		for b.Loop() {
			f.View(func(s *State) error {
				if p, err := s.Purge(3); err != nil || len(p.Views) != 1025 {
					b.Fatalf("%d views, %v", len(p.Views), err)
				}
				return nil
			})
		}
	})
}
