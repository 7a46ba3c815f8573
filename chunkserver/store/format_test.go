package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestForeignDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "holiday.jpg"), nil, 0o600))
	_, err := Open(dir, small)
	if err == nil || !strings.Contains(err.Error(), "holiday.jpg") {
		t.Fatalf("error %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, "holiday.jpg")))
	mustOpen(t, dir, small)
}

func TestFormatFile(t *testing.T) {
	reseal := func(b []byte) {
		binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b[16:], castagnoli))
	}
	for _, test := range []struct {
		name, want string
		damaged    bool
		change     func(b []byte)
	}{
		{"magic", "not that of a store", false, func(b []byte) { b[0] = 'X' }},
		{"newer", "version 3, this program knows 2", false, func(b []byte) { b[8] = 3 }},
		{"older", "version 1, this program knows 2", false, func(b []byte) { b[8] = 1 }},
		{"flipped bit", "damaged", true, func(b []byte) { b[20] ^= 1 }},
		{"another store's journal", "another store", true, func(b []byte) { b[20] ^= 1; reseal(b) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, mustOpen(t, dir, small).Close())
			name := filepath.Join(dir, formatFile)
			b, err := os.ReadFile(name)
			must(t, err)
			test.change(b)
			must(t, os.WriteFile(name, b, 0o600))
			_, err = Open(dir, small)
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, ErrDamaged) != test.damaged {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func TestBind(t *testing.T) {
	const one, two = "11111111-2222-4333-8444-555555555555", "91111111-2222-4333-8444-555555555555"
	dir := t.TempDir()
	s := mustOpen(t, dir, small)
	for _, bad := range []string{"", "x", strings.Repeat("g", 36), one + "0"} {
		if s.Bind(bad) == nil {
			t.Errorf("bound to %q", bad)
		}
	}
	for range 2 {
		must(t, s.Bind(one))
		if err := s.Bind(two); err == nil || !strings.Contains(err.Error(), one) {
			t.Errorf("bound to a second cluster: %v", err)
		}
		must(t, s.Close())
		s = mustOpen(t, dir, small)
	}
}

// A crash at any moment while a store is being made leaves a directory in
// which one can be made, or is one.
func TestCreateSurvivesLossOfPower(t *testing.T) {
	for seed := range uint64(60) {
		d := newDisk()
		d.offAt = 1 + int(seed%30)
		id := ""
		for range 10 {
			s, err := Open("", onDisk(d))
			if err == nil {
				if id != "" && s.ID() != id {
					t.Errorf("seed %d: the store has got another id", seed)
				}
				id = s.ID()
				s.Close()
			} else if !d.off {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if d.off {
				d.lose(newRand(seed))
			}
		}
		if id == "" {
			t.Errorf("seed %d: no store was made", seed)
		}
	}
}
