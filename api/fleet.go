package api

import (
	"context"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

// listChunkservers tells how the chunkservers are, to whom it may concern.
func listChunkservers(*params) operation {
	return func(ctx context.Context, m Metadata) (reply, error) {
		presences, err := m.Presences()
		if err != nil {
			return nil, err
		}
		answer := &client.ChunkserversReply{Chunkservers: []client.Chunkserver{}}
		err = m.Read(ctx, func(s *fsm.State) error {
			members, primaries := make(map[chunk.NodeID]int), make(map[chunk.NodeID]int)
			for _, set := range s.Copysets(fsm.DefaultPool) {
				primaries[set.Primary]++
				for _, member := range set.Members {
					members[member.Node]++
				}
			}
			for _, n := range s.Nodes() {
				p, ok := presences[n.ID]
				answer.Chunkservers = append(answer.Chunkservers, client.Chunkserver{
					ID: uint64(n.ID), Address: n.Address, Connected: ok, Silent: uint64(p.Silent / time.Microsecond),
					Draining: n.Draining, Copysets: members[n.ID], Primaries: primaries[n.ID], Used: p.Used, Free: p.Free,
				})
			}
			return nil
		})
		return answer, err
	}
}

// drainChunkserver has a chunkserver's copies moved to others, or no longer.
func drainChunkserver(p *params) operation {
	return just(fsm.DrainNode{Node: p.chunkserver(), Draining: !p.flag("Cancel")})
}

// removeChunkserver forgets a chunkserver that keeps nothing any more. One that
// runs would only come back, as a new one.
func removeChunkserver(p *params) operation {
	node := p.chunkserver()
	return func(ctx context.Context, m Metadata) (reply, error) {
		presences, err := m.Presences()
		if err != nil {
			return nil, err
		}
		if _, ok := presences[node]; ok {
			return nil, refuse(client.InvalidStatus, "chunkserver %d is connected: stop it first", node)
		}
		return just(fsm.RemoveNode{Node: node})(ctx, m)
	}
}

// listCopysets tells who keeps which copies, and on request whether they are
// equal.
func listCopysets(p *params) operation {
	verify := p.flag("Verify")
	return func(ctx context.Context, m Metadata) (_ reply, err error) {
		var verdicts map[chunk.CopysetID]cluster.Verdict
		if verify {
			if verdicts, err = m.Verify(ctx); err != nil {
				return nil, err
			}
		}
		answer := &client.CopysetsReply{Copysets: []client.Copyset{}}
		err = m.Read(ctx, func(s *fsm.State) error {
			for _, set := range s.Copysets(fsm.DefaultPool) {
				answer.Copysets = append(answer.Copysets, renderCopyset(set, verdicts[set.ID]))
			}
			return nil
		})
		return answer, err
	}
}

func renderCopyset(set chunk.Copyset, verdict cluster.Verdict) client.Copyset {
	rendered := client.Copyset{
		ID: uint64(set.ID), Epoch: uint64(set.Epoch), Primary: uint64(set.Primary), Members: []client.CopysetMember{}, Copies: client.Copies(verdict),
	}
	for _, m := range set.Members {
		rendered.Members = append(rendered.Members, client.CopysetMember{Chunkserver: uint64(m.Node), State: client.MemberState(m.State)})
	}
	return rendered
}
