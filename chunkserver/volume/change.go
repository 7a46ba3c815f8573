package volume

import (
	"bytes"
	"context"
	"iter"
	"sync"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// change makes the bytes from off to end, cut into pieces, equal to src, or
// to zeros if that is nil. It ends the request that begin has counted in.
func (v *Volume) change(ctx context.Context, off, end uint64, pieces iter.Seq[piece], src []byte) error {
	if v.readOnly {
		v.requests.end()
		return wire.ErrReadOnly
	}
	if off == end {
		v.requests.end()
		return nil
	}
	claim, err := v.locks.lock(ctx, off/chunk.BlockSize, (end-1)/chunk.BlockSize)
	if err != nil {
		v.requests.end()
		return err
	}
	finish := func() {
		v.locks.unlock(claim)
		v.requests.end()
	}
	var left leftovers
	err = each(pieces, func(p piece) error { return v.changePiece(ctx, p, src, &left) })
	if len(left.ops) == 0 {
		finish()
		return err
	}
	v.session.run.Go(func() {
		defer finish()
		for _, op := range left.ops {
			v.submit(v.ctx, op)
			v.attachment.leave()
		}
	})
	return err
}

// leftovers are operations of unknown outcome that their caller has given up.
// They are still inside the gate.
type leftovers struct {
	mu  sync.Mutex
	ops []*chunk.Op
}

func (l *leftovers) add(op *chunk.Op) {
	op.Data = bytes.Clone(op.Data)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops = append(l.ops, op)
}

// changePiece passes the gate with one piece of a change.
func (v *Volume) changePiece(ctx context.Context, p piece, src []byte, left *leftovers) error {
	now, err := v.attachment.enter(ctx)
	if err != nil {
		return err
	}
	op, err := v.operation(ctx, p, src, now.Token)
	if err != nil {
		v.attachment.leave()
		return err
	}
	unknown, err := v.submit(ctx, op)
	if unknown {
		left.add(op)
	} else {
		v.attachment.leave()
	}
	return err
}

// operation is what makes a piece equal to its part of src. For a part of a
// block it reads the rest.
func (v *Volume) operation(ctx context.Context, p piece, src []byte, token chunk.Token) (*chunk.Op, error) {
	off, n := p.blocks()
	op := &chunk.Op{Kind: chunk.OpWrite, Ref: chunk.Ref{Volume: v.volume.ID, Index: p.index}, Token: token, Off: off, Len: n}
	switch {
	case !p.whole():
		block, err := v.fetch(ctx, p.index, off, n)
		if err != nil {
			return nil, err
		}
		part := block[p.in-off:][:p.n]
		if src == nil {
			clear(part)
		} else {
			copy(part, src[p.at:])
		}
		op.Data = block
	case src == nil:
		op.Kind = chunk.OpZero
	default:
		op.Data = src[p.at:][:p.n]
	}
	if op.Kind == chunk.OpWrite {
		op.Sums = chunk.Checksums(make([]uint32, 0, n/chunk.BlockSize), op.Data)
	}
	return op, nil
}

// submit hands an operation to its copyset. unknown reports that ctx has ended
// and the operation may yet be carried out, now or later.
func (v *Volume) submit(ctx context.Context, op *chunk.Op) (unknown bool, err error) {
	_, unknown, err = v.route(ctx, wire.KindSubmit, op.Ref.Index, op.Data, func(copyset chunk.CopysetID, epoch chunk.Epoch) []byte {
		s := wire.Submit{Copyset: copyset, Epoch: epoch, Op: *op}
		return s.AppendHead(make([]byte, 0, 64+4*len(op.Sums)))
	})
	return unknown, err
}
