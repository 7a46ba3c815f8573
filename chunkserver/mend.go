package chunkserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/store"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// mending bounds how long a damaged block is looked for at peers.
const mending = 10 * time.Second

// block reads a block for a peer whose own copy is damaged.
func (s *Server) block(_ context.Context, req wire.Block) ([]byte, error) {
	return s.store.Block(req.Part.Ref, req.Part.Seq, int(req.Part.Part)*chunk.PartBlocks+int(req.Block))
}

// mend puts a damaged block right with the content that a peer has. Which
// peers hold the chunk, and how far they are, makes no difference: the store
// takes only what matches the checksum that it has kept.
func (s *Server) mend(ctx context.Context, d *store.DamageError) error {
	ctx, cancel := context.WithTimeout(ctx, mending)
	defer cancel()
	ask := wire.Block{
		Part:  chunk.Part{Ref: d.Ref, Seq: d.Seq, Part: uint8(d.Block / chunk.PartBlocks)},
		Block: uint8(d.Block % chunk.PartBlocks),
	}
	failures := []error{d}
	for node, conn := range s.connected() {
		var content []byte
		err := wire.Ask(ctx, conn, wire.KindBlock, ask, &content)
		if err == nil {
			err = s.store.Repair(d.Ref, d.Seq, d.Block, content)
		}
		if err == nil {
			return nil
		}
		failures = append(failures, fmt.Errorf("from chunkserver %d: %w", node, err))
	}
	return errors.Join(failures...)
}

// mended calls read until nothing that it finds damaged can be put right.
func (s *Server) mended(ctx context.Context, read func() error) error {
	for {
		err := read()
		var damage *store.DamageError
		if !errors.As(err, &damage) {
			return err
		}
		if err := s.mend(ctx, damage); err != nil {
			s.log.Error("a damaged block can't be mended", "err", err)
			return fmt.Errorf("%w, and no peer has it", damage)
		}
	}
}

// mendFound puts right what the store has found in its search for damage.
func (s *Server) mendFound(f store.Finding) {
	if f.Ref.Volume == 0 || f.Block < 0 {
		return
	}
	if err := s.mend(s.ctx, &store.DamageError{Ref: f.Ref, Seq: f.Seq, Block: f.Block}); err != nil {
		s.log.Error("a damaged block can't be mended", "err", err)
	}
}
