package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// simBlocks is how many blocks of a chunk the simulator uses: few, so that
// operations overlap.
const simBlocks = 3

const sealTicket Ticket = 1 << 63

// A world is a cluster with its metadata and clients, and with somebody who
// sees everything and checks it against the invariants.
type world struct {
	*cluster
	story *strings.Builder // nil if nobody listens
	quiet bool             // no faults any more, and nothing new is asked for

	config  chunk.Copyset                 // committed by the metadata servers
	configs map[chunk.Epoch]chunk.Copyset // all that ever were
	sealed  Reply

	forgetful chunk.NodeID // whose disk may lack what it once had; 0 if none
	suspect   chunk.NodeID // found out by a primary

	tally tally

	clients []*client
	ids     uint64
	tickets Ticket
	waiting map[Ticket]*wait
	open    map[Ticket]*Core // asked, and not answered
	reads   []Ticket         // executed, and not asked about

	pulls    map[chunk.NodeID]*pull
	supplies []*supply
	needs    map[*Core]chunk.Epoch // in which it was last told that a member is needed
	reported map[chunk.NodeID]bool // as synced, under the present configuration

	started   map[*Core]chunk.Epoch // in which it has served
	authored  map[position]*chunk.Entry
	committed []chunk.Entry // Invariant: only ever grows; LSN 1 comes first
	commits   map[*Core]chunk.LSN
	content   contents             // of what is committed
	placed    map[uint64]chunk.LSN // of each operation, where it is committed last
	floors    map[block]chunk.LSN  // what the next read must show at least
	tokens    map[chunk.VolumeID]chunk.Token
}

// A tally tells whether enough happens.
type tally struct{ committed, epochs, suspects, joins, copies, waited, replaced int }

func (t *tally) add(o *tally) {
	t.committed += o.committed
	t.epochs += o.epochs
	t.suspects += o.suspects
	t.joins += o.joins
	t.copies += o.copies
	t.waited += o.waited
	t.replaced += o.replaced
}

type position struct {
	epoch chunk.Epoch
	lsn   chunk.LSN
}

type block struct {
	ref   chunk.Ref
	index int
}

// A violation is a broken invariant.
type violation string

func (v violation) Error() string { return string(v) }

func (w *world) fail(format string, args ...any) {
	w.logf("VIOLATION: "+format, args...)
	panic(violation(fmt.Sprintf(format, args...)))
}

func (w *world) logf(format string, args ...any) {
	if w.story != nil {
		fmt.Fprintf(w.story, format+"\n", args...)
	}
}

// newWorld has the first of the nodes be members.
func newWorld(nodes, members int, story *strings.Builder) *world {
	w := &world{
		cluster:  newCluster(nodes),
		story:    story,
		configs:  make(map[chunk.Epoch]chunk.Copyset),
		waiting:  make(map[Ticket]*wait),
		open:     make(map[Ticket]*Core),
		started:  make(map[*Core]chunk.Epoch),
		authored: make(map[position]*chunk.Entry),
		commits:  make(map[*Core]chunk.LSN),
		placed:   make(map[uint64]chunk.LSN),
		floors:   make(map[block]chunk.LSN),
		tokens:   make(map[chunk.VolumeID]chunk.Token),
		pulls:    make(map[chunk.NodeID]*pull),
		needs:    make(map[*Core]chunk.Epoch),
		reported: make(map[chunk.NodeID]bool),
	}
	for _, n := range w.nodes[:members] {
		w.config.Members = append(w.config.Members, chunk.Member{Node: n.id, State: chunk.InSync})
	}
	w.cluster.stepped = w.check
	return w
}

func (w *world) newID() uint64 {
	w.ids++
	return w.ids
}

// settled reports whether there is nothing left to do.
func (w *world) settled() bool {
	for _, c := range w.clients {
		if len(c.requests) > 0 {
			return false
		}
	}
	for _, m := range w.config.Members {
		n := w.node(m.Node)
		if n.core == nil || n.core.config.Epoch != w.config.Epoch {
			return false
		}
		if m.State != chunk.InSync || len(n.pending) > 0 || n.core.commit != n.last() {
			return false
		}
	}
	return w.config.Epoch > 0
}

// check looks at what a core has just done.
func (w *world) check(n *node, _ Event, effects Effects) {
	for i := range effects.Journal {
		w.checkAuthor(&effects.Journal[i])
	}
	for i := range effects.Send {
		w.checkStanding(n, effects.Send[i].Message.Epoch)
	}
	if epoch := n.core.Serving(); epoch != 0 {
		w.checkStanding(n, epoch)
		w.checkStart(n)
	}
	for _, suspect := range effects.Suspects {
		if n.core.config.Epoch < w.config.Epoch {
			continue // the leader does not listen
		}
		if suspect != w.forgetful {
			w.fail("node %d suspects %d of lying", n.id, suspect)
		}
		w.suspect = suspect
		w.tally.suspects++
	}
	w.tally.copies += len(effects.Copies)
	if n.core.lead != nil && len(n.core.lead.deferred) > 0 {
		w.tally.waited++
	}
	if effects.Commit != 0 {
		w.checkCommit(n, effects.Commit)
	}
	for _, r := range effects.Reply {
		w.answered(n, r)
	}
	if n.core.lead != nil {
		w.checkCounted(n)
		w.checkReported(n)
	}
}

// checkCounted, invariant 8: an operation is ordered only with two members in sync, and
// committed when all in sync are durable; one that is syncing makes no
// difference before it is needed.
func (w *world) checkCounted(n *node) {
	c := n.core
	if len(c.effects.Journal) > 0 && inSync(&c.config) < min(minInSync, len(c.config.Members)) {
		w.fail("node %d orders operations under %+v", n.id, c.config)
	}
	lsn := c.durable
	for _, m := range c.config.Members {
		if m.Node == n.id || m.State != chunk.InSync {
			continue
		}
		if p := c.lead.peer(m.Node); p.trusted {
			lsn = min(lsn, p.acked)
		} else {
			return
		}
	}
	if c.commit > lsn && c.commit > c.lead.start || c.commit < lsn && w.needs[c] != c.config.Epoch {
		w.fail("node %d commits up to %d, when the members in sync have %d", n.id, c.commit, lsn)
	}
}

// checkReported, invariant 2: a member that is reported as synced has what is committed,
// and from then on counts as in sync, as the next configuration may say so.
func (w *world) checkReported(n *node) {
	if n.core.config.Epoch != w.config.Epoch || !n.core.lead.syncing() {
		return
	}
	synced, _ := n.core.Report()
	for _, id := range synced {
		if !w.reported[id] {
			w.logf("node %d reports that %d is synced", n.id, id)
			w.reported[id] = true
			w.checkMember(id)
		}
	}
}

// checkAuthor, invariant 3: an epoch and an LSN name one operation.
func (w *world) checkAuthor(e *chunk.Entry) {
	p := position{e.Epoch, e.LSN}
	if other := w.authored[p]; other == nil {
		copied := *e
		w.authored[p] = &copied
	} else if !same(e, other) {
		w.fail("%d.%d is both %v and %v", e.Epoch, e.LSN, shownOp(e.Op), shownOp(other.Op))
	}
}

// checkStanding, invariant 4: nobody acts under an epoch smaller than promised, or one that
// doesn't count on the present run of its process.
func (w *world) checkStanding(n *node, epoch chunk.Epoch) {
	if epoch < n.disk.promised {
		w.fail("node %d acts under epoch %d, having promised %d", n.id, epoch, n.disk.promised)
	}
	config := w.configs[epoch]
	m := config.Member(n.id)
	if m == nil || m.State == chunk.Out || m.Incarnation != n.run || n.core.Serving() != 0 && m.State != chunk.InSync {
		w.fail("node %d, run %d, acts under %+v", n.id, n.run, config)
	}
}

// checkStart, invariant 1: a primary serves when all that it begins with is
// durable, and the same, at all members in sync.
func (w *world) checkStart(n *node) {
	if w.started[n.core] == n.core.Serving() {
		return
	}
	w.started[n.core] = n.core.Serving()
	for _, m := range n.core.config.Members {
		disk := &w.node(m.Node).disk
		for lsn := range n.core.lead.start {
			if w.relied(m) && (len(disk.entries) <= int(lsn) || disk.joined <= lsn && n.disk.joined <= lsn && !same(&disk.entries[lsn], n.entry(lsn+1))) {
				w.fail("node %d serves epoch %d before member %d has entry %d", n.id, n.core.config.Epoch, m.Node, lsn+1)
			}
		}
	}
}

// checkCommit: what is committed stays, the same everywhere, and all members
// in sync are durable.
func (w *world) checkCommit(n *node, lsn chunk.LSN) {
	for at := max(w.commits[n.core], n.disk.joined) + 1; at <= lsn; at++ {
		e := n.entry(at)
		if e == nil {
			w.fail("node %d takes %d for committed, which it doesn't have", n.id, at)
		}
		if int(at) <= len(w.committed) {
			if !same(e, &w.committed[at-1]) {
				w.fail("node %d has another entry %d than was committed", n.id, at)
			}
			continue
		}
		if int(at) != len(w.committed)+1 {
			w.fail("node %d takes %d for committed, when history ends at %d", n.id, at, len(w.committed))
		}
		w.committed = append(w.committed, *e)
		w.content.execute(e)
		w.checkHeld(at)
		w.checkToken(e)
		w.placed[binary.LittleEndian.Uint64(e.Op.Data)] = at
	}
	w.commits[n.core] = lsn
}

// relied reports whether a member must have what is committed.
func (w *world) relied(m chunk.Member) bool {
	return (m.State == chunk.InSync || w.reported[m.Node]) && m.Node != w.forgetful
}

// checkHeld, invariant 2: every member in sync has a committed entry on its disk.
func (w *world) checkHeld(lsn chunk.LSN) {
	for _, m := range w.config.Members {
		if w.relied(m) {
			w.checkEntry(m.Node, lsn)
		}
	}
}

func (w *world) checkEntry(id chunk.NodeID, lsn chunk.LSN) {
	disk := &w.node(id).disk
	if len(disk.entries) < int(lsn) || disk.joined < lsn && !same(&disk.entries[lsn-1], &w.committed[lsn-1]) {
		w.fail("node %d is in sync but does not have the committed entry %d", id, lsn)
	}
}

// forgo lets go of what a member has asked for.
func (w *world) forgo(y *supply) {
	w.supplies = slices.DeleteFunc(w.supplies, func(o *supply) bool { return o == y })
}

// checkToken, invariant 5: behind a token there is none that is smaller.
func (w *world) checkToken(e *chunk.Entry) {
	if e.Op.Kind == chunk.OpPurge || e.Op.Kind == chunk.OpFlatten {
		return
	}
	if token := w.tokens[e.Op.Ref.Volume]; e.Op.Token.Compare(token) < 0 {
		w.fail("entry %d of the writer %v is committed behind one of %v", e.LSN, e.Op.Token, token)
	}
	w.tokens[e.Op.Ref.Volume] = e.Op.Token
}

// reconfigured has the metadata servers commit a configuration.
func (w *world) reconfigured(next chunk.Copyset) {
	w.config, w.configs[next.Epoch] = next, next
	clear(w.reported)
	w.checkCopies()
}

// checkCopies, invariants 2 and 7: every member in sync has all that is
// committed, as entries or as their effects.
func (w *world) checkCopies() {
	for _, m := range w.config.Members {
		if w.relied(m) {
			w.checkMember(m.Node)
		}
	}
}

// checkMember compares what a member has with what is committed, and what it
// has beyond that.
func (w *world) checkMember(id chunk.NodeID) {
	disk := &w.node(id).disk
	for i := range w.committed {
		w.checkEntry(id, chunk.LSN(i+1))
	}
	if int(disk.joined) > len(w.committed) {
		w.fail("node %d is in sync, and was put on the stream at %d, but only %d is committed", id, disk.joined, len(w.committed))
	}
	want := w.content
	for i := len(w.committed); i < len(disk.entries); i++ {
		want.execute(&disk.entries[i])
	}
	for i := range want {
		if !want[i].equal(&disk.content[i]) {
			w.fail("node %d is in sync but has %v in %v, not %v", id, disk.content[i], blockOf(i), want[i])
		}
	}
}

// answered takes a reply to the client.
func (w *world) answered(n *node, r Reply) {
	if r.Ticket == sealTicket {
		w.sealed = r
		return
	}
	if w.open[r.Ticket] != n.core {
		w.fail("ticket %d is answered, but nobody asks", r.Ticket)
	}
	delete(w.open, r.Ticket)
	if i := slices.IndexFunc(w.supplies, func(y *supply) bool { return y.ticket == r.Ticket }); i >= 0 {
		w.answeredSupply(n, w.supplies[i], r.Err)
		return
	}
	wait := w.waiting[r.Ticket]
	if wait == nil {
		return // the client has given it up
	}
	delete(w.waiting, r.Ticket)
	req := wait.request
	c := req.client
	w.logf("client %d.%d: %d is answered: %v", c.volume, c.token.Attachment, req.id, r.Err)
	switch {
	case errors.Is(r.Err, chunk.ErrFenced):
		w.checkFenced(n, req)
		c.fenced, c.requests = true, nil
		return
	case errors.Is(r.Err, chunk.ErrStaleEpoch), errors.Is(r.Err, chunk.ErrNotReady):
		w.again(req)
		return
	case r.Err != nil:
		w.fail("client is told %v", r.Err)
	}
	c.requests = slices.DeleteFunc(c.requests, func(other *request) bool { return other == req })
	w.checkStanding(n, wait.epoch)
	if req.isRead {
		w.checkRead(wait)
	} else {
		w.acknowledged(req)
	}
}

// checkFenced: only those are sent away whose successor is in the history.
func (w *world) checkFenced(n *node, r *request) {
	fences := func(e *chunk.Entry) bool {
		return e.Op.Ref.Volume == r.client.volume && e.Op.Token.Compare(r.op.Token) > 0
	}
	if w.tokens[r.client.volume].Compare(r.op.Token) > 0 || slices.ContainsFunc(n.journaled(), fences) {
		return
	}
	for i := range n.disk.entries {
		if fences(&n.disk.entries[i]) {
			return
		}
	}
	w.fail("writer %v of volume %d is told that it is fenced", r.op.Token, r.client.volume)
}

// acknowledged: what is acknowledged is committed.
func (w *world) acknowledged(r *request) {
	lsn := w.placed[r.id]
	if lsn == 0 {
		w.fail("operation %d is acknowledged but not committed", r.id)
	}
	c := r.client
	if r.op.Kind == chunk.OpFence {
		c.attached = true
		for _, other := range w.clients {
			other.replaced = other.replaced || other.volume == c.volume && other.token.Attachment < c.token.Attachment
		}
		return
	}
	if c.replaced {
		// Its last acknowledgements may arrive after those of its successor.
		return
	}
	if r.op.Kind == chunk.OpFlatten {
		return // it changes nothing that a read shows
	}
	for _, b := range blocksOf(&r.op) {
		w.floors[b] = max(w.floors[b], lsn)
	}
}

// floor is what a read that begins now must show at least.
func (w *world) floor(op *chunk.Op) chunk.LSN { return w.floors[blocksOf(op)[0]] }

// checkRead, invariant 6: a read shows nothing older than what was acknowledged, or read,
// before it began, and nothing that may still be lost. A fenced client is
// promised nothing.
func (w *world) checkRead(wait *wait) {
	if wait.request.client.replaced {
		return
	}
	var lsn chunk.LSN
	if e := wait.value; e != nil {
		lsn = e.LSN
		if len(w.committed) < int(lsn) || !same(e, &w.committed[lsn-1]) {
			w.fail("read %d shows entry %d.%d, which is not committed", wait.request.id, e.Epoch, lsn)
		}
	}
	if lsn < wait.request.floor {
		w.fail("read %d shows entry %d, but %d was certain when it began", wait.request.id, lsn, wait.request.floor)
	}
	b := blocksOf(&wait.request.op)[0]
	w.floors[b] = max(w.floors[b], lsn)
}

// checkEnd: in the end every request is answered unless its process has died,
// and all members in sync have what is committed, and nothing else.
func (w *world) checkEnd() {
	w.forgetful = 0 // it has been found out, or got everything again
	for t, core := range w.open {
		for _, n := range w.nodes {
			if n.core == core {
				w.fail("ticket %d is never answered", t)
			}
		}
	}
	for _, m := range w.config.Members {
		n := w.node(m.Node)
		if m.State != chunk.InSync {
			w.fail("node %d is %v", n.id, m.State)
		}
		if len(n.disk.entries) != len(w.committed) {
			w.fail("node %d ends at %d, history at %d", n.id, len(n.disk.entries), len(w.committed))
		}
	}
	w.checkCopies()
}

func blocksOf(op *chunk.Op) []block {
	var all []block
	for off := op.Off; off < op.Off+op.Len; off += chunk.BlockSize {
		all = append(all, block{op.Ref, int(off / chunk.BlockSize)})
	}
	return all
}

func same(a, b *chunk.Entry) bool {
	return a.Epoch == b.Epoch && a.LSN == b.LSN && a.Op.Kind == b.Op.Kind && a.Op.Ref == b.Op.Ref &&
		a.Op.Token == b.Op.Token && slices.Equal(a.Op.Data, b.Op.Data)
}
