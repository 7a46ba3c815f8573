package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Kind tells what a frame asks. The control plane's bodies are JSON, the data
// plane's binary.
type Kind uint8

const (
	KindHello Kind = 1

	// From clients to the primary of a copyset.
	KindSubmit  Kind = 2 // Submit
	KindRead    Kind = 3 // Read; the reply is the data
	KindExtents Kind = 4 // Read; the reply is as in AppendExtents

	// Between the members of a copyset, one-way.
	KindReplica Kind = 5 // replica.Message

	// From members of a copyset to others.
	KindSurvey Kind = 6 // Survey -> []chunk.Survey
	KindPull   Kind = 7 // Pull; the reply is a u32
	KindPulled Kind = 8 // Pulled -> empty
	KindBlock  Kind = 9 // Block; the reply is its content

	// From chunkservers to the metadata leader.
	KindRegister  Kind = 16 // Register -> Registered
	KindHeartbeat Kind = 17 // Heartbeat -> empty

	// From the metadata leader to chunkservers.
	KindConfigure Kind = 24 // Configure -> Configured
	KindSeal      Kind = 25 // Seal -> []Sealed
	KindChunks    Kind = 26 // Chunks -> []uint32
	KindDigest    Kind = 27 // Digest -> []Digested

	// From gateways to the metadata leader.
	KindOpen    Kind = 32 // Open -> Opened
	KindRelease Kind = 33 // Release -> empty
	KindResume  Kind = 34 // Resume -> Context
	KindMap     Kind = 35 // empty -> Map
	KindStat    Kind = 36 // Open -> Volume
	KindList    Kind = 37 // empty -> []string
	KindRenew   Kind = 38 // empty -> empty
	KindHeld    Kind = 39 // Held -> empty

	// From the metadata leader to gateways.
	KindPause   Kind = 48 // Pause -> empty, when no write is in flight
	KindProceed Kind = 49 // Proceed -> empty
	KindRevoke  Kind = 50 // Revoke -> empty, when nothing is in flight
	KindMapped  Kind = 51 // Map, one-way: how it is from now on
)

// Register introduces a chunkserver's process to the leader.
type Register struct {
	Store       string // the store's UUID
	Incarnation chunk.Incarnation
	Address     string // where its data plane listens
}

// Registered tells a chunkserver who it is.
type Registered struct {
	Cluster string
	Node    chunk.NodeID
}

// Heartbeat says that a chunkserver lives, and how it is.
type Heartbeat struct {
	Used, Free uint64 // bytes
	Full       bool   // nothing more is written here
	Reports    []Report
}

// Report is what the primary of a copyset in an epoch has to tell about the
// other members.
type Report struct {
	Copyset chunk.CopysetID
	Epoch   chunk.Epoch
	Synced  []chunk.NodeID // have everything, and nothing is acknowledged without them any more
	Lagging []chunk.NodeID // don't keep up, or can't be what they were
}

// Equal reports whether two reports say the same.
func (r Report) Equal(o Report) bool {
	return r.Copyset == o.Copyset && r.Epoch == o.Epoch && slices.Equal(r.Synced, o.Synced) && slices.Equal(r.Lagging, o.Lagging)
}

// Configure hands a member the configurations of its copysets.
type Configure struct {
	Copysets []chunk.Copyset
	Peers    map[chunk.NodeID]string // addresses of the members
}

// Configured names the copysets that have promised to refuse the epochs of
// these configurations: they wait for later ones.
type Configured struct {
	Sealed []chunk.CopysetID
}

// Seal asks a member to refuse, for good, everything of an epoch below the
// one named, and to tell how far its history reaches.
type Seal struct {
	Epochs map[chunk.CopysetID]chunk.Epoch
}

// Sealed is a member's answer for one copyset.
type Sealed struct {
	Copyset chunk.CopysetID
	Epoch   chunk.Epoch // of the last operation
	LSN     chunk.LSN   // of the last operation
}

// Chunks asks which chunks hold layers of any of the volumes.
type Chunks struct {
	Volumes []chunk.VolumeID
}

// Digest asks what the copies of all copysets come to. Layers of volumes that
// are not named do not count.
type Digest struct {
	Copysets int // of the pool
	Roots    map[chunk.VolumeID]chunk.VolumeID
}

// Digested is a copy of a copyset. Two copies with equal histories are equal
// if, but for chance, their sums are.
type Digested struct {
	Copyset chunk.CopysetID
	LSN     chunk.LSN // of the last operation
	Settled bool      // all operations are in the sum, and no others
	Layers  int
	Sum     [16]byte
}

// Open asks for a volume's head, or for a snapshot of it. In Stat it only
// asks what there is.
type Open struct {
	Path     string
	Snapshot string // name; empty for the head
	ReadOnly bool
}

// Volume describes what was opened.
type Volume struct {
	ID       chunk.VolumeID
	Root     chunk.VolumeID
	Size     uint64 // bytes
	Layout   chunk.Layout
	ReadOnly bool
}

// Context is what a writer or reader stamps its requests with.
type Context struct {
	Token chunk.Token
	View  []byte // see chunk.ParseView
}

// Opened is an attachment of a volume to a gateway.
type Opened struct {
	Attachment uint64
	Volume     Volume
	Context    Context
}

// Release gives an attachment back; nothing of it is in flight.
type Release struct {
	Attachment uint64
}

// Held begins a connection to a leader: it names everything that the gateway's
// process has attached. What else the leader takes for attached by that process
// is what it never heard of, or has given up, and ends.
type Held struct {
	Attachments []uint64
}

// Resume continues an attachment on a new connection to a leader. A writer
// that was paused on the old one has stayed so; it goes on with the context of
// the answer, and that pause is void. One that was not paused has not stopped.
type Resume struct {
	Attachment uint64
}

// Map says where copysets are: Copysets[i] has the id i.
type Map struct {
	Cluster  string // which chunkservers want to hear
	Copysets []chunk.Copyset
	Peers    map[chunk.NodeID]string
}

// Pause asks a writer to hold new writes and to answer when none is in flight.
type Pause struct {
	Attachment uint64
}

// Proceed ends a pause.
type Proceed struct {
	Attachment uint64
	Context    Context
}

// Revoke ends an attachment for good.
type Revoke struct {
	Attachment uint64
}

// Ask makes a request of the control plane: req goes out as JSON, and the
// reply is decoded into resp unless that is nil.
func Ask(ctx context.Context, c *Conn, kind Kind, req, resp any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request of kind %d: %w", kind, err)
	}
	reply, err := c.Call(ctx, kind, body, nil)
	if err != nil || resp == nil {
		return err
	}
	if err := json.Unmarshal(reply, resp); err != nil {
		return fmt.Errorf("decode reply of kind %d: %w", kind, err)
	}
	return nil
}

// Answer decodes a request of the control plane, works on it in a goroutine
// of the connection, and replies with what work returns.
func Answer[Req, Resp any](r *Request, work func(context.Context, Req) (Resp, error)) {
	r.Go(func(ctx context.Context) {
		var req Req
		if err := json.Unmarshal(r.Payload, &req); err != nil {
			r.Refuse(fmt.Errorf("%w: request of kind %d: %w", chunk.ErrInvalid, r.Kind, err))
			return
		}
		resp, err := work(ctx, req)
		if err != nil {
			r.Refuse(err)
			return
		}
		body, err := json.Marshal(resp)
		if err != nil {
			r.Refuse(fmt.Errorf("encode reply of kind %d: %w", r.Kind, err))
			return
		}
		r.Reply(body, nil)
	})
}
