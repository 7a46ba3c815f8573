package replica

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts say now into testdata")

// TestScripts plays the scenarios in testdata. A script is a list of commands,
// one a line, with the steps of the cores that each leads to below it,
// indented; lines that begin with # explain. The commands:
//
//	nodes 3                          start three nodes with empty disks
//	configure 1,2,3 epoch=1 primary=1 [out=3] [syncing=3]
//	                                 all nodes are members; those named first are told
//	seal 1,2 epoch=2
//	submit 1 t7 epoch=1 write 5/0 by 1.1 at 0+2
//	                                 ticket 7; also zero, fence, flatten, purge; blocks 0 and 1 of chunk 0 of volume 5
//	read 1 t8 epoch=1 5/0 at 0+2     ask about a read
//	sync 1,2                         all that is pending there becomes durable
//	deliver 1->2 [n]                 all messages of a connection, or the first n
//	lose 1->2                        lose what is on the connection and make a new one
//	delay 1->2                       make a new connection; what is on the old one comes late
//	late 1->2                        now
//	hold 1 t9 epoch=1 node=3 round=1 5/0 at 0+2
//	release 1 t9 [copy]              with what node 1 has where the range begins, or nothing
//	need 1 t10 epoch=1 node=3 round=1
//	tick 1 [n]                       n times
//	report 1
//	crash 1                          nothing pending survives
//	start 1                          a new process, and connections to all that run
//	settle                           deliver and sync everywhere until nothing is left
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, err := play(string(want))
			if err != nil {
				t.Fatal(err)
			}
			if *rewrite {
				err = os.WriteFile(file, []byte(got), 0o644)
			}
			if diff := cmp.Diff(string(want), got); diff != "" && !*rewrite || err != nil {
				t.Errorf("%v; -want +got:\n%s", err, diff)
			}
		})
	}
}

const indent = "    "

// play returns the script with the output that it has now.
func play(script string) (string, error) {
	s := &stage{holds: make(map[Ticket]Hold)}
	for i, line := range strings.Split(strings.TrimSuffix(script, "\n"), "\n") {
		if strings.HasPrefix(line, indent) {
			continue
		}
		fmt.Fprintln(&s.out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := s.do(strings.Fields(line)); err != nil {
			return "", fmt.Errorf("line %d, %q: %w", i+1, line, err)
		}
	}
	return s.out.String(), nil
}

// A stage is where a script plays.
type stage struct {
	*cluster
	out   strings.Builder
	holds map[Ticket]Hold
}

func (s *stage) do(words []string) error {
	a := &args{words: words[1:]}
	switch words[0] {
	case "nodes":
		s.cluster = newCluster(a.number(""))
		s.stepped = s.show
		for _, n := range s.nodes {
			s.start(n)
		}
	case "configure":
		for _, n := range s.some(a) {
			s.step(n, Configure{s.config(a)})
		}
	case "seal":
		for _, n := range s.some(a) {
			s.step(n, Seal{Epoch: chunk.Epoch(a.named("epoch"))})
		}
	case "submit":
		n, e := s.some(a)[0], Submit{Ticket: Ticket(a.number("t")), Epoch: chunk.Epoch(a.named("epoch"))}
		e.Op = a.op()
		s.step(n, e)
	case "read":
		n, e := s.some(a)[0], Read{Ticket: Ticket(a.number("t")), Epoch: chunk.Epoch(a.named("epoch"))}
		e.Ref = a.ref()
		e.Off, e.Len = a.blocks()
		s.step(n, e)
	case "sync":
		for _, n := range s.some(a) {
			s.sync(n, len(n.pending))
		}
	case "deliver":
		s.deliverSome(a)
	case "lose":
		from, to := a.link()
		s.link(from, to).queue = nil
		s.connect(from, to)
	case "delay":
		from, to := a.link()
		s.connect(from, to)
	case "late":
		from, to := a.link()
		l := s.link(from, to)
		for _, m := range l.late {
			s.step(s.node(to), Receive{from, m})
		}
		l.late = nil
	case "tick":
		n := s.some(a)[0]
		for range max(1, a.last()) {
			s.step(n, Tick{})
		}
	case "hold":
		s.hold(a)
	case "release":
		s.release(a)
	case "need":
		n, e := s.some(a)[0], Need{Ticket: Ticket(a.number("t"))}
		e.Epoch, e.Node, e.Round = a.stream()
		s.step(n, e)
	case "report":
		n := s.some(a)[0]
		synced, lagging := n.core.Report()
		fmt.Fprintf(&s.out, indent+"%d reports %v synced, %v lagging\n", n.id, synced, lagging)
	case "crash":
		s.crash(s.some(a)[0], 0)
	case "start":
		s.start(s.some(a)[0])
	case "settle":
		s.settle()
	default:
		return fmt.Errorf("unknown command")
	}
	return a.err
}

func (s *stage) hold(a *args) {
	n, e := s.some(a)[0], Hold{Ticket: Ticket(a.number("t"))}
	e.Epoch, e.Node, e.Round = a.stream()
	e.Ref = a.ref()
	e.Off, e.Len = a.blocks()
	s.holds[e.Ticket] = e
	s.step(n, e)
}

func (s *stage) release(a *args) {
	n, e := s.some(a)[0], Release{Ticket: Ticket(a.number("t"))}
	if len(a.words) > 0 {
		h := s.holds[e.Ticket]
		all, _ := n.disk.differ(partOf(block{h.Ref, int(h.Off / chunk.BlockSize)}), &[partBlocks]content{})
		e.Copy = s.sendable(all)
	}
	s.step(n, e)
}

// show prints a step that had effects, or that was to have some.
func (s *stage) show(n *node, e Event, effects Effects) {
	line := func(format string, args ...any) {
		fmt.Fprintf(&s.out, indent+"%d %s\n", n.id, fmt.Sprintf(format, args...))
	}
	if r, ok := e.(Receive); ok {
		line("<- %d: %v", r.From, shownMessage(r.Message))
	}
	if effects.Promise != 0 {
		line("promises epoch %d", effects.Promise)
	}
	if r := effects.Reset; r != nil {
		line("goes on behind %d.%d, with the tokens of %d volumes", r.LastEpoch, r.LSN, len(r.Tokens))
	}
	for _, entry := range effects.Journal {
		line("journals %v", shownEntry(entry))
	}
	for range effects.Copies {
		line("takes a copy")
	}
	if effects.Trust {
		line("is trusted")
	}
	for _, s := range effects.Send {
		line("-> %d: %v", s.To, shownMessage(s.Message))
	}
	for _, r := range effects.Reply {
		switch {
		case r.Err != nil:
			line("answers t%d: %v", r.Ticket, r.Err)
		case r.Ticket == 0:
			line("answers that its history ends at %d.%d", r.LastEpoch, r.Last)
		default:
			line("answers t%d", r.Ticket)
		}
	}
	if effects.Commit != 0 {
		line("is committed up to %d", effects.Commit)
	}
	for _, suspect := range effects.Suspects {
		line("suspects %d", suspect)
	}
}

// config is the configuration that a command describes.
func (s *stage) config(a *args) chunk.Copyset {
	c := chunk.Copyset{ID: 9, Epoch: chunk.Epoch(a.named("epoch")), Primary: chunk.NodeID(a.named("primary"))}
	out, syncing := chunk.NodeID(a.named("out")), chunk.NodeID(a.named("syncing"))
	for _, n := range s.nodes {
		m := chunk.Member{Node: n.id, Incarnation: n.run, State: chunk.InSync}
		switch n.id {
		case out:
			m.State = chunk.Out
		case syncing:
			m.State = chunk.Syncing
		}
		c.Members = append(c.Members, m)
	}
	return c
}

func (s *stage) deliverSome(a *args) {
	from, to := a.link()
	n := len(s.link(from, to).queue)
	if len(a.words) > 0 {
		n = min(n, a.number(""))
	}
	for range n {
		s.deliver(from, to)
	}
}

func (s *stage) settle() {
	for busy := true; busy; {
		busy = false
		for _, n := range s.nodes {
			if n.core == nil {
				continue
			}
			if len(n.pending) > 0 {
				busy = true
				s.sync(n, len(n.pending))
			}
			for _, from := range s.nodes {
				if from != n && len(s.link(from.id, n.id).queue) > 0 {
					busy = true
					s.deliver(from.id, n.id)
				}
			}
		}
	}
}

// some takes the nodes that a command is for.
func (s *stage) some(a *args) []*node {
	var nodes []*node
	for _, word := range strings.Split(a.next(), ",") {
		id := a.parse(word)
		if id < 1 || id > len(s.nodes) {
			a.fail("there is no node %q", word)
			id = 1
		}
		nodes = append(nodes, s.nodes[id-1])
	}
	return nodes
}

// args takes the words of a command one by one, and keeps the first error.
type args struct {
	words []string
	err   error
}

func (a *args) fail(format string, args ...any) {
	if a.err == nil {
		a.err = fmt.Errorf(format, args...)
	}
}

func (a *args) next() string {
	if len(a.words) == 0 {
		a.fail("ends too early")
		return ""
	}
	word := a.words[0]
	a.words = a.words[1:]
	return word
}

func (a *args) parse(word string) int {
	n, err := strconv.Atoi(word)
	if err != nil {
		a.fail("%q is no number", word)
	}
	return n
}

// number takes a number behind a prefix.
func (a *args) number(prefix string) int {
	return a.parse(strings.TrimPrefix(a.next(), prefix))
}

// named takes name=number out of what is left; 0 if it isn't there.
func (a *args) named(name string) int {
	for _, word := range a.words {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			return a.parse(value)
		}
	}
	return 0
}

// last takes the last number, if any is left.
func (a *args) last() int {
	if len(a.words) == 0 {
		return 0
	}
	return a.number("")
}

// stream takes what names the stream of a member that is syncing.
func (a *args) stream() (chunk.Epoch, chunk.NodeID, uint64) {
	return chunk.Epoch(a.named("epoch")), chunk.NodeID(a.named("node")), uint64(a.named("round"))
}

// plain takes the next word that is not of the form name=value.
func (a *args) plain() string {
	word := a.next()
	for strings.Contains(word, "=") {
		word = a.next()
	}
	return word
}

// pair takes two numbers with a separator between them.
func (a *args) pair(separator string) (int, int) {
	word := a.plain()
	left, right, ok := strings.Cut(word, separator)
	if !ok {
		a.fail("%q has no %s", word, separator)
		return 0, 0
	}
	return a.parse(left), a.parse(right)
}

func (a *args) link() (from, to chunk.NodeID) {
	f, t := a.pair("->")
	return chunk.NodeID(f), chunk.NodeID(t)
}

func (a *args) ref() chunk.Ref {
	volume, index := a.pair("/")
	return chunk.Ref{Volume: chunk.VolumeID(volume), Index: uint32(index)}
}

// blocks takes "at FIRST+COUNT".
func (a *args) blocks() (off, n uint32) {
	if word := a.plain(); word != "at" {
		a.fail("%q instead of at", word)
	}
	first, count := a.pair("+")
	return uint32(first) * chunk.BlockSize, uint32(count) * chunk.BlockSize
}

// op takes an operation, as shownOp prints it.
func (a *args) op() chunk.Op {
	kinds := map[string]chunk.OpKind{"write": chunk.OpWrite, "zero": chunk.OpZero, "fence": chunk.OpFence, "flatten": chunk.OpFlatten, "purge": chunk.OpPurge}
	var op chunk.Op
	op.Kind = kinds[a.plain()]
	op.Ref = a.ref()
	if op.Kind == chunk.OpPurge {
		return op
	}
	if word := a.plain(); word != "by" {
		a.fail("%q instead of by", word)
	}
	attachment, seq := a.pair(".")
	op.Token = chunk.Token{Attachment: uint64(attachment), Seq: chunk.Seq(seq)}
	if op.Kind != chunk.OpFence {
		op.Off, op.Len = a.blocks()
	}
	return op
}
