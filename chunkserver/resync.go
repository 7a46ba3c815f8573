package chunkserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

const (
	// maxPulling bounds the copysets that are brought up to date here at the
	// same time, and maxParts the parts that each of them has asked for.
	maxPulling = 4
	maxParts   = 4
	// surveyed is the number of chunks that are compared at a time.
	surveyed = 256
)

// pull brings a copyset here up to date: it compares all that may differ with
// what the primary has, and asks for it. What others write meanwhile comes on
// the same stream as the copies that it gets. It belongs to one stream: when
// the core is put on another one, another pull begins.
type pull struct {
	copyset *copyset
	primary chunk.NodeID
	stream  wire.Stream
	cancel  context.CancelFunc

	mu     sync.Mutex
	wanted map[chunk.Part]chan error // told when a copy of the part is stored; each has room for one
}

// follow begins a pull if the core is on a new stream, and ends the one of an
// older stream. mu must be held.
func (c *copyset) follow() {
	primary, epoch, round, ok := c.core.Pulling()
	stream := wire.Stream{Copyset: c.id, Epoch: epoch, Round: round}
	if c.pull != nil && (!ok || c.pull.stream != stream) {
		c.pull.cancel()
		c.pull = nil
	}
	if !ok || c.pull != nil {
		return
	}
	ctx, cancel := context.WithCancel(c.server.ctx)
	p := &pull{copyset: c, primary: primary, stream: stream, cancel: cancel, wanted: make(map[chunk.Part]chan error)}
	c.pull = p
	c.server.running.Go(func() {
		defer cancel()
		p.run(ctx)
	})
}

// run tries until everything is here, or ctx ends.
func (p *pull) run(ctx context.Context) {
	s := p.copyset.server
	if s.pulling.Acquire(ctx, 1) != nil {
		return
	}
	defer s.pulling.Release(1)
	for wait := leastPause; ; wait = pause(ctx, wait) {
		err := p.try(ctx)
		switch {
		case err == nil:
			s.log.Info("copyset is up to date", "copyset", p.stream.Copyset, "epoch", p.stream.Epoch)
			return
		case ctx.Err() != nil:
			return
		}
		s.log.Info("copyset is not up to date yet", "copyset", p.stream.Copyset, "primary", p.primary, "err", err)
	}
}

// try goes through all chunks once, and tells the primary that everything is
// here.
func (p *pull) try(ctx context.Context) error {
	trusted := p.copyset.server.store.Trusted(p.stream.Copyset)
	var theirs, ours surveys
	theirs.more = func(after chunk.Ref) (chunks []chunk.Survey, err error) {
		return chunks, p.ask(ctx, wire.KindSurvey, wire.Survey{Stream: p.stream, After: after, Trusted: trusted}, &chunks)
	}
	ours.more = func(after chunk.Ref) ([]chunk.Survey, error) {
		return p.copyset.server.store.Survey(p.stream.Copyset, after, surveyed, trusted)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxParts)
	for ctx.Err() == nil {
		their, our, err := nextChunk(&theirs, &ours)
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		if their.Ref == (chunk.Ref{}) {
			break
		}
		for _, part := range differing(their, our) {
			group.Go(func() error { return p.part(ctx, part) })
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return p.ask(p.copyset.server.ctx, wire.KindPulled, wire.Pulled{Stream: p.stream}, nil)
}

// ask asks the primary on the control plane's terms.
func (p *pull) ask(ctx context.Context, kind wire.Kind, req, resp any) error {
	conn := p.copyset.server.link(p.primary)
	if conn == nil {
		return fmt.Errorf("%w: no connection to chunkserver %d", wire.ErrUnavailable, p.primary)
	}
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	return wire.Ask(ctx, conn, kind, req, resp)
}

// part has one part made equal to the primary's, and returns when it is.
func (p *pull) part(ctx context.Context, part chunk.Part) error {
	has, err := p.copyset.server.store.Outline(part)
	if err != nil {
		return err
	}
	conn := p.copyset.server.link(p.primary)
	if conn == nil {
		return fmt.Errorf("%w: no connection to chunkserver %d", wire.ErrUnavailable, p.primary)
	}
	stored := p.want(part)
	defer p.forget(part)
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	req := wire.Pull{Stream: p.stream, Part: part, Has: has}
	reply, err := conn.Call(ctx, wire.KindPull, req.Append(nil), nil)
	if err != nil {
		return err
	}
	if len(reply) != 4 {
		return fmt.Errorf("%w: reply of %d bytes to a pull", chunk.ErrInvalid, len(reply))
	}
	if binary.LittleEndian.Uint32(reply) == 0 {
		return nil
	}
	select {
	case err := <-stored:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: the copy of %v has not come: %w", wire.ErrUnavailable, part, ctx.Err())
	}
}

func (p *pull) want(part chunk.Part) <-chan error {
	stored := make(chan error, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted[part] = stored
	return stored
}

func (p *pull) forget(part chunk.Part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.wanted, part)
}

// stored takes in that a copy of a part is durable, or why it isn't.
func (p *pull) stored(part chunk.Part, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stored := p.wanted[part]; stored != nil {
		stored <- err
		delete(p.wanted, part)
	}
}

// keep has the store take in a copy that the primary has sent. One that there
// is no room for is left out, and its pull fails. mu must be held.
func (c *copyset) keep(copied *chunk.Copy) error {
	p, s := c.pull, c.server
	done := func(err error) {
		if p != nil {
			p.stored(copied.Part, err)
		}
	}
	if err := s.store.Admit(len(copied.Content)); err != nil {
		done(err)
		return nil
	}
	s.copied.Add(uint64(len(copied.Content)))
	return s.store.Copy(s.ctx, c.id, copied, done)
}

// surveys are the chunks of one side, in order, fetched some at a time.
type surveys struct {
	more  func(after chunk.Ref) ([]chunk.Survey, error)
	some  []chunk.Survey
	after chunk.Ref
	ended bool
}

// first returns the next chunk, or nil behind the last one.
func (s *surveys) first() (*chunk.Survey, error) {
	if len(s.some) == 0 && !s.ended {
		var err error
		if s.some, err = s.more(s.after); err != nil {
			return nil, err
		}
		if s.ended = len(s.some) == 0; !s.ended {
			s.after = s.some[len(s.some)-1].Ref
		}
	}
	if s.ended {
		return nil, nil
	}
	return &s.some[0], nil
}

// nextChunk returns what both sides have of the next chunk that either has;
// of chunk 0 of volume 0 if there is none.
func nextChunk(theirs, ours *surveys) (their, our chunk.Survey, err error) {
	t, err := theirs.first()
	if err != nil {
		return their, our, fmt.Errorf("survey the primary: %w", err)
	}
	o, err := ours.first()
	if err != nil {
		return their, our, fmt.Errorf("survey: %w", err)
	}
	order := 0
	switch {
	case t == nil && o == nil:
		return their, our, nil
	case t == nil:
		order = 1
	case o == nil:
		order = -1
	default:
		order = t.Ref.Compare(o.Ref)
	}
	if order <= 0 {
		their, our.Ref = *t, t.Ref
		theirs.some = theirs.some[1:]
	}
	if order >= 0 {
		our, their.Ref = *o, o.Ref
		ours.some = ours.some[1:]
	}
	return their, our, nil
}

// differing returns the parts of a chunk that may differ: what either side has
// changed behind what is trusted, and what only one has, as it was freed since.
func differing(their, our chunk.Survey) (parts []chunk.Part) {
	add := func(seq chunk.Seq, in uint64) {
		for ; in != 0; in &= in - 1 {
			parts = append(parts, chunk.Part{Ref: their.Ref, Seq: seq, Part: uint8(bits.TrailingZeros64(in))})
		}
	}
	ours := our.Layers
	for _, t := range their.Layers {
		for len(ours) > 0 && ours[0].Seq < t.Seq {
			add(ours[0].Seq, ours[0].Parts)
			ours = ours[1:]
		}
		var o chunk.LayerSurvey
		if len(ours) > 0 && ours[0].Seq == t.Seq {
			o, ours = ours[0], ours[1:]
		}
		differ := t.Fresh | o.Fresh | (t.Parts ^ o.Parts)
		if differ == 0 && t.Digest != o.Digest {
			differ = t.Parts // can't be, unless what is trusted is wrong
		}
		add(t.Seq, differ)
	}
	for _, o := range ours {
		add(o.Seq, o.Parts)
	}
	return parts
}
