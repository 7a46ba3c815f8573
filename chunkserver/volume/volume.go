// Package volume presents the volumes of a cluster as bytes, to one gateway
// process.
//
// A [Session] is the process' standing with the cluster. A [Volume] is
// attached through it and belongs to it until it is closed or revoked. A
// request is cut into pieces, each within one chunk; each piece goes to the
// primary of the chunk's copyset, in parallel, and is tried again, under
// newer maps and on newer connections, until it has an answer.
//
// What makes a repeated write harmless:
//
//   - Changes that touch the same blocks run one after the other, in the order
//     in which they came. So nothing that was acknowledged lies between a
//     write and its repetition.
//   - A change whose outcome is unknown is not forgotten when its caller gives
//     up: it keeps its blocks locked and is repeated, from a copy of its data,
//     until its outcome is known. A copy that lingers somewhere is then ordered
//     before its repetition, or dead.
//   - A connection is replaced under the same session name, and the chunkserver
//     drops the older one wholly before it welcomes the newer.
//
// What makes a snapshot one point in time: each piece of a change passes the
// gate of the volume's attachment, where it gets the context, sequence number
// and view, that it is stamped with. The leader closes the gate, is told when
// nothing is in, commits the snapshot, and opens it with the next context.
// Changes that come meanwhile wait. Without a leader a closed gate stays
// closed, and an open one open.
//
// Chunks are read and written in blocks. A change of a part of a block reads
// the block and writes it back whole, while it has it locked.
package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// ErrDetached: the volume has been closed, or the cluster has ended its
// attachment. Nothing more can be done with it, ever.
var ErrDetached = errors.New("volume is detached")

// Volume is an open volume or snapshot. Its methods may be called
// concurrently. Offsets and lengths are bytes, of any alignment; a range that
// reaches beyond Size is refused with chunk.ErrInvalid, and a change of a
// read-only volume with wire.ErrReadOnly.
//
// Reading and writing outlast the failure of chunkservers and of the
// metadata leader: a request waits, until its context ends. It fails for good
// with ErrDetached, chunk.ErrNoSpace, chunk.ErrDamaged, or an error that none
// of these is, if a chunkserver failed in another way.
type Volume struct {
	session    *Session
	volume     wire.Volume
	readOnly   bool
	attachment *attachment
	locks      *rangeLock
	requests   tally // under way, including changes that their callers have given up

	ctx    context.Context // of changes that their callers have given up
	cancel context.CancelFunc
}

func newVolume(s *Session, opened wire.Opened, readOnly bool) *Volume {
	v := &Volume{
		session:    s,
		volume:     opened.Volume,
		readOnly:   readOnly || opened.Volume.ReadOnly,
		attachment: newAttachment(opened.Attachment, opened.Context),
		locks:      newRangeLock(),
	}
	v.ctx, v.cancel = context.WithCancel(s.ctx)
	return v
}

// Size is the length of the volume in bytes as of its attachment.
func (v *Volume) Size() uint64 { return v.volume.Size }

// ReadOnly reports whether the volume refuses changes.
func (v *Volume) ReadOnly() bool { return v.readOnly }

// ReadAt fills p with what the volume holds from off on.
func (v *Volume) ReadAt(ctx context.Context, p []byte, off uint64) error {
	end, err := v.begin(off, uint64(len(p)))
	if err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	defer v.requests.end()
	err = each(split(v.volume.Layout, off, off, end, chunk.MaxOp), func(r piece) error {
		return v.read(ctx, r, p[r.at:r.at+uint64(r.n)])
	})
	if err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// WriteAt stores p at off. When it returns nil, p is durable on every copy;
// when it fails, any part of p may have been stored. It does not keep p.
func (v *Volume) WriteAt(ctx context.Context, p []byte, off uint64) error {
	end, err := v.begin(off, uint64(len(p)))
	if err == nil {
		err = v.change(ctx, off, end, splitChange(v.volume.Layout, off, end), p)
	}
	if err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// Zero makes n bytes at off read as zeros and gives up the space of whole
// blocks.
func (v *Volume) Zero(ctx context.Context, off, n uint64) error {
	end, err := v.begin(off, n)
	if err == nil {
		err = v.change(ctx, off, end, splitZero(v.volume.Layout, off, end), nil)
	}
	if err != nil {
		return fmt.Errorf("zero %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// Discard makes the whole blocks within n bytes at off read as zeros and
// gives up their space.
func (v *Volume) Discard(ctx context.Context, off, n uint64) error {
	end, err := v.begin(off, n)
	if err == nil {
		lo, hi := inner(off, end)
		err = v.change(ctx, lo, hi, splitZero(v.volume.Layout, lo, hi), nil)
	}
	if err != nil {
		return fmt.Errorf("discard %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// Sync reports whether the volume is still attached: whatever was written is
// durable already.
func (v *Volume) Sync(context.Context) error { return v.attachment.err() }

// Close waits for the requests under way and gives the volume back to the
// cluster. If ctx ends before, the volume is detached all the same, and the
// cluster will have to fence it before it has another writer.
func (v *Volume) Close(ctx context.Context) error {
	if !v.requests.close() {
		return nil
	}
	defer v.session.forget(v)
	defer v.cancel()
	defer v.attachment.end(errClosed)
	if err := v.requests.wait(ctx); err != nil {
		return fmt.Errorf("close volume %d with requests under way: %w", v.volume.ID, err)
	}
	if v.attachment.id == 0 || v.attachment.err() != nil {
		return nil
	}
	err := v.session.ask(ctx, wire.KindRelease, wire.Release{Attachment: v.attachment.id}, nil)
	if err != nil && !errors.Is(err, wire.ErrNotExist) {
		return fmt.Errorf("release volume %d: %w", v.volume.ID, err)
	}
	return nil
}

var errClosed = errors.New("closed")

// begin checks a range and counts a request in. It returns the range's end.
func (v *Volume) begin(off, n uint64) (end uint64, err error) {
	if off > v.volume.Size || n > v.volume.Size-off {
		return 0, fmt.Errorf("%w: the volume has %d bytes", chunk.ErrInvalid, v.volume.Size)
	}
	if err := v.attachment.err(); err != nil {
		return 0, err
	}
	if !v.requests.begin() {
		return 0, fmt.Errorf("%w: %w", ErrDetached, errClosed)
	}
	return off + n, nil
}
