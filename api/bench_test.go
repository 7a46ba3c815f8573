package api

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/localsnap/localsnap/fsm"
)

// BenchmarkListFile reads pages of a directory of 100,000 volumes over HTTP,
// through a real connection, and all of them one after the other.
func BenchmarkListFile(b *testing.B) {
	const volumes, batch, total = 100_000, 1000, 100_001
	w := newWorld(b, func(*fsm.Settings) {})
	for i := 0; i < volumes; i += batch {
		entries := make([]fsm.Entry, batch)
		for j := range entries {
			c := fsm.CreateVolume{User: "ann", Path: fmt.Sprintf("/v%d", i+j), Size: 1 << 30}
			entries[j] = fsm.Entry{Index: w.fsm.Applied() + 1 + uint64(j), Data: fsm.Encode(c)}
		}
		w.fsm.Apply(entries)
	}
	server := httptest.NewServer((&Server{Metadata: w}).Handler())
	defer server.Close()
	client := server.Client()
	list := func(b *testing.B, offset int) {
		r, err := client.Get(fmt.Sprintf("%s%s?Action=ListFile&Version=1.5&User=ann&Dir=/&Offset=%d", server.URL, servicePath, offset))
		if err != nil {
			b.Fatal(err)
		}
		defer r.Body.Close()
		if _, err := io.Copy(io.Discard, r.Body); err != nil || r.StatusCode != http.StatusOK {
			b.Fatal(r.Status, err)
		}
	}
	for _, offset := range []int{0, total / 2, total - 10} {
		b.Run(fmt.Sprintf("offset=%d", offset), func(b *testing.B) {
			for b.Loop() {
				list(b, offset)
			}
		})
	}
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			for offset := 0; offset < total; offset += 10 {
				list(b, offset)
			}
		}
	})
}
