package client

import "context"

// ListChunkservers returns all chunkservers.
func (c *Client) ListChunkservers(ctx context.Context, r ListChunkserversRequest) (ChunkserversReply, error) {
	return get[ChunkserversReply](ctx, c, "ListChunkservers", r)
}

// DrainChunkserver has a chunkserver's copies moved to others, until it keeps
// none.
func (c *Client) DrainChunkserver(ctx context.Context, r DrainChunkserverRequest) error {
	return c.do(ctx, "DrainChunkserver", r, &Reply{})
}

// RemoveChunkserver forgets a chunkserver that keeps no copies and does not run.
func (c *Client) RemoveChunkserver(ctx context.Context, r RemoveChunkserverRequest) error {
	return c.do(ctx, "RemoveChunkserver", r, &Reply{})
}

// ListCopysets returns all copysets.
func (c *Client) ListCopysets(ctx context.Context, r ListCopysetsRequest) (CopysetsReply, error) {
	return get[CopysetsReply](ctx, c, "ListCopysets", r)
}

// ListChunkserversRequest asks how the chunkservers are.
type ListChunkserversRequest struct{}

// DrainChunkserverRequest names a chunkserver that is to leave.
type DrainChunkserverRequest struct {
	ID     uint64
	Cancel bool // it is to stay
}

// RemoveChunkserverRequest names a chunkserver that has left.
type RemoveChunkserverRequest struct {
	ID uint64
}

// ListCopysetsRequest asks who keeps which copies.
type ListCopysetsRequest struct {
	Verify bool // compare the copies, which may take some seconds
}

// ChunkserversReply answers ListChunkservers.
type ChunkserversReply struct {
	Reply
	Chunkservers []Chunkserver
}

// Chunkserver keeps copies of data.
type Chunkserver struct {
	ID        uint64
	Address   string
	Connected bool   // to the leader
	Silent    uint64 // microseconds since it gave a sign of life, if Connected
	Draining  bool   // its copies are moved to others
	Copysets  int    // that it is a member of
	Primaries int    // of these, whose primary it is
	Used      uint64 // bytes, if Connected
	Free      uint64 // bytes, if Connected
}

// CopysetsReply answers ListCopysets.
type CopysetsReply struct {
	Reply
	Copysets []Copyset
}

// Copyset is a group of chunkservers with equal copies of some of the data.
type Copyset struct {
	ID      uint64
	Epoch   uint64 // counts its configurations
	Primary uint64 // the chunkserver that is read and written
	Members []CopysetMember
	Copies  Copies `json:",omitempty"` // unless ListCopysetsRequest.Verify
}

// CopysetMember is a chunkserver's place in a copyset.
type CopysetMember struct {
	Chunkserver uint64
	State       MemberState
}

// MemberState tells what a copy may be relied on for.
type MemberState int

const (
	MemberInSync  MemberState = 1 // has everything that was acknowledged
	MemberSyncing MemberState = 2 // is being brought up to date
	MemberOut     MemberState = 3 // lacks something
)

// Copies tells how the copies in sync of a copyset compare.
type Copies int

const (
	CopiesIdentical Copies = 1
	CopiesDiffer    Copies = 2
	CopiesBusy      Copies = 3 // were written all the time
	CopiesMissing   Copies = 4 // a chunkserver did not answer
)
