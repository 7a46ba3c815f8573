package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/volume"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// A gateway's process is cut off from the metadata servers, but not from the
// chunkservers, and replaced by another run of the same gateway: the first
// one's writes change nothing from then on.
func TestReplacedGatewayIsFenced(t *testing.T) {
	t.Parallel()
	d, users := startDev(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := users.CreateFile(ctx, client.CreateFileRequest{User: "ann", File: "/v", Size: 1}); err != nil {
		t.Fatal(err)
	}
	var controls []string
	for _, s := range d.servers {
		controls = append(controls, s.node.Self().Control)
	}
	var cut atomic.Bool
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		if cut.Load() && slices.Contains(controls, address) {
			return nil, errors.New("cut off by the test")
		}
		return wire.DialTCP(ctx, address)
	}
	connect := func(dial wire.Dialer) *volume.Session {
		s, err := volume.Connect(volume.Config{
			Servers: controls, Gateway: "twice", Run: uuid.NewString(), Dial: dial, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	older, err := connect(dial).Attach(ctx, "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := bytes.Repeat([]byte{1}, chunk.BlockSize), bytes.Repeat([]byte{2}, chunk.BlockSize)
	if err := older.WriteAt(ctx, theirs, 0); err != nil {
		t.Fatal(err)
	}
	cut.Store(true)

	newer, err := connect(nil).Attach(ctx, "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := newer.WriteAt(ctx, ours, 0); err != nil {
		t.Fatal(err)
	}
	// The newer one has written to another copyset: that this one refuses is
	// not owed to its token.
	if err := older.WriteAt(ctx, theirs, chunk.Size); !errors.Is(err, volume.ErrDetached) {
		t.Errorf("a write of the replaced gateway: %v", err)
	}
	got := make([]byte, chunk.BlockSize)
	if err := newer.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, ours) {
		t.Errorf("the newer gateway reads %d..., error %v", got[:4], err)
	}
	if err := newer.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := users.DeleteFile(ctx, client.DeleteFileRequest{User: "ann", File: "/v"}); err != nil {
		t.Errorf("after both are gone: %v", err)
	}
}
