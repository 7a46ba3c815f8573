package chunkserver

import (
	"context"
	"encoding/binary"
	"math/bits"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/replica"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// looking is what comparing a block costs, in bytes that are sent.
const looking = 256

// peerTimeout bounds how long a peer may take to answer.
const peerTimeout = 10 * time.Second

// survey tells a member that is to be brought up to date what there is: at
// least everything that was ordered before the member got on its stream.
func (s *Server) survey(ctx context.Context, req wire.Survey) ([]chunk.Survey, error) {
	c := s.known(req.Copyset)
	if c == nil {
		return nil, chunk.ErrNotReady
	}
	if err := c.settle(ctx, req.Epoch); err != nil {
		return nil, err
	}
	return s.store.Survey(req.Copyset, req.After, surveyed, req.Trusted)
}

// settle returns when all that has been ordered up to now can be seen in the
// store.
func (c *copyset) settle(ctx context.Context, epoch chunk.Epoch) error {
	if c.serving.Load() != uint64(epoch) {
		return chunk.ErrNotReady
	}
	c.mu.Lock()
	last, _ := c.core.End()
	c.mu.Unlock()
	for c.durable.Load() < uint64(last) {
		pause(ctx, time.Millisecond)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// supply copies a part to a member that has pulled it: nobody changes the part
// while it is read.
func (s *Server) supply(r *wire.Request, from chunk.NodeID) {
	req, err := wire.ParsePull(r.Payload)
	if err != nil {
		r.Refuse(err)
		return
	}
	c := s.known(req.Copyset)
	if c == nil {
		r.Refuse(chunk.ErrNotReady)
		return
	}
	r.Go(func(ctx context.Context) {
		n, err := c.supply(ctx, from, &req)
		if err != nil {
			r.Refuse(err)
			return
		}
		r.Reply(binary.LittleEndian.AppendUint32(nil, uint32(n)), nil)
	})
}

func (c *copyset) supply(ctx context.Context, to chunk.NodeID, req *wire.Pull) (sent int, err error) {
	s := c.server
	if err := s.pace.wait(ctx, looking*bits.OnesCount64(req.Has.Data)); err != nil {
		return 0, err
	}
	held := make(chan error, 1)
	ticket := c.ask(func(t replica.Ticket) replica.Event {
		return replica.Hold{Ticket: t, Epoch: req.Epoch, Node: to, Round: req.Round, Ref: req.Part.Ref, Off: req.Part.Off(), Len: chunk.PartSize}
	}, func(r replica.Reply) { held <- r.Err })
	if err := <-held; err != nil { // a Hold is answered when what it waits for is durable, or at the end of the epoch
		return 0, err
	}
	release := replica.Release{Ticket: ticket}
	var differs chunk.Copy
	err = s.mended(ctx, func() (err error) {
		var differ bool
		if differs, differ, err = s.store.Differ(req.Part, req.Has); differ && err == nil {
			release.Copy = &differs
		}
		return err
	})
	if stepErr := c.step(release); err == nil {
		err = stepErr
	}
	if err != nil || release.Copy == nil {
		return 0, err
	}
	s.supplied.Add(uint64(len(differs.Content)))
	return max(1, len(differs.Content)), s.pace.wait(ctx, len(differs.Content))
}

// pulled takes in that a member has everything that it pulled.
func (s *Server) pulled(from chunk.NodeID, req wire.Pulled) (none struct{}, err error) {
	c := s.known(req.Copyset)
	if c == nil {
		return none, chunk.ErrNotReady
	}
	needed := make(chan error, 1)
	c.ask(func(t replica.Ticket) replica.Event {
		return replica.Need{Ticket: t, Epoch: req.Epoch, Node: from, Round: req.Round}
	}, func(r replica.Reply) { needed <- r.Err })
	return none, <-needed // a Need is answered within its step
}
