package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/store"
)

// stoppedStore makes a store with two layers in volume 3 and one in volume 5,
// and stops it.
func stoppedStore(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(dir, store.Options{SegmentBytes: 1 << 20, ReserveBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{1}, chunk.BlockSize)
	for i, op := range []chunk.Op{
		{Kind: chunk.OpWrite, Ref: chunk.Ref{Volume: 3}, Token: chunk.Token{Seq: 1}, Len: chunk.BlockSize, Data: block, Sums: chunk.Checksums(nil, block)},
		{Kind: chunk.OpZero, Ref: chunk.Ref{Volume: 3}, Token: chunk.Token{Seq: 2}, Len: 256 * chunk.BlockSize},
		{Kind: chunk.OpZero, Ref: chunk.Ref{Volume: 5, Index: 7}, Token: chunk.Token{Seq: 1}, Len: 512 * chunk.BlockSize},
	} {
		done := make(chan error, 1)
		e := chunk.Entry{Copyset: 8, Epoch: 4, LSN: chunk.LSN(i + 1), Commit: chunk.LSN(i), Op: op}
		if err := s.Append(t.Context(), []chunk.Entry{e}, func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// localsnap carries out a command line that must end with code.
func localsnap(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	if got := execute(context.Background(), args, &out, &err); got != code {
		t.Errorf("%v: exit code %d, want %d: %s", args, got, code, err.String())
	}
	return out.String(), err.String()
}

func TestStoreInspect(t *testing.T) {
	t.Parallel()
	dir := stoppedStore(t)
	text, _ := localsnap(t, 0, "store", "inspect", dir, "--layers")
	const want = `store UUID of no cluster yet, version N, with 0.0 MiB of data
journal segments 1 to 2 of 1.0 MiB each, N unused ones; 0 records since the last checkpoint, executed here in memory

VOLUME  CHUNKS  LAYERS  DATA     ZEROS
3       1       2       0.0 MiB  1.0 MiB
5       1       1       0.0 MiB  2.0 MiB

COPYSET  EPOCH  LAST  COMMITTED  PROMISED EPOCH
8        4      3     2          0

VOLUME  CHUNK  SEQUENCE NUMBER  DATA     ZEROS
3       0      1                0.0 MiB  0.0 MiB
3       0      2                0.0 MiB  1.0 MiB
5       7      1                0.0 MiB  2.0 MiB
`
	text = regexp.MustCompile(`store \S{36} `).ReplaceAllString(text, "store UUID ")
	text = regexp.MustCompile(`version \d+`).ReplaceAllString(text, "version N")
	text = regexp.MustCompile(`\d+ unused`).ReplaceAllString(text, "N unused")
	if diff := cmp.Diff(want, text); diff != "" {
		t.Error(diff)
	}
	text, _ = localsnap(t, 0, "store", "inspect", dir, "--json")
	var r storeReport
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	volumes := []volumeReport{{3, 1, 2, chunk.BlockSize, 1 << 20}, {5, 1, 1, 0, 2 << 20}}
	if diff := cmp.Diff(volumes, r.Volumes); diff != "" || r.Data != chunk.BlockSize || len(r.Layers) != 0 {
		t.Errorf("%+v: %s", r, diff)
	}
}

func TestStoreVerify(t *testing.T) {
	t.Parallel()
	dir := stoppedStore(t)
	text, progress := localsnap(t, 0, "store", "verify", dir)
	if text != "verified 0.0 MiB of data: 0 findings\n" || !strings.Contains(progress, "verifying "+dir+": 100%") {
		t.Errorf("said %q and %q", text, progress)
	}

	layers, err := filepath.Glob(filepath.Join(dir, "layers", "*", "*"))
	if err != nil || len(layers) != 1 {
		t.Fatalf("%v, %v", layers, err)
	}
	if err := os.WriteFile(layers[0], []byte("damage"), 0); err != nil {
		t.Fatal(err)
	}
	text, complaint := localsnap(t, 1, "store", "verify", dir)
	if !strings.Contains(text, "block 0 of layer 1 of chunk 3/0: content does not match the checksum\n") || !strings.Contains(complaint, "is damaged") {
		t.Errorf("said %q and %q", text, complaint)
	}
	text, _ = localsnap(t, 1, "store", "verify", dir, "--json")
	var result struct{ Findings []storeFinding }
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		t.Fatal(err)
	}
	want := []storeFinding{{3, 0, 1, 0, "content does not match the checksum"}}
	if diff := cmp.Diff(want, result.Findings); diff != "" {
		t.Error(diff)
	}

	// Damage to the journal shows without reading the blocks.
	if err := os.Remove(filepath.Join(dir, "journal", "0000000000000001.seg")); err != nil {
		t.Fatal(err)
	}
	text, _ = localsnap(t, 1, "store", "inspect", dir)
	if !strings.Contains(text, "journal/0000000000000001.seg is missing") || !strings.Contains(text, "VOLUME") {
		t.Errorf("said %q", text)
	}
}

func TestStoreRefusals(t *testing.T) {
	t.Parallel()
	dir := stoppedStore(t)
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, verb := range []string{"inspect", "verify"} {
		for of, want := range map[string]string{
			dir:                           "is in use: stop its chunkserver first",
			t.TempDir():                   "not a store",
			filepath.Join(dir, "nothing"): "no such file",
		} {
			if _, complaint := localsnap(t, 1, "store", verb, of); !strings.Contains(complaint, want) {
				t.Errorf("%s %s: %q, want %q", verb, of, complaint, want)
			}
		}
	}
}
