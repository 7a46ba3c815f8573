package replica

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var mutants = flag.Bool("mutants", false, "compile each mutant of the protocol and see the simulator catch it")

// mutantSeeds is the number of schedules in which every mutant is caught.
const mutantSeeds = 100000

// A mutant is the protocol with one rule broken.
type mutant struct {
	name     string
	file     string
	old, new string
	more     []edit
	by       string // the test that sees it, if it is not the simulator
}

// An edit is another place that a mutant changes: when one rule backs another
// up, both must be broken for the simulator to see it.
type edit struct{ old, new string }

// TestMutants shows that the simulator can see what it is to guard against:
// it breaks one rule of the protocol after the other and runs TestSim on the
// result. It takes a compilation for each, so it runs only with -mutants.
func TestMutants(t *testing.T) {
	if !*mutants {
		t.Skip("runs with -mutants")
	}
	for _, m := range protocolMutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			m.mustBeCaught(t)
		})
	}
}

var protocolMutants = []mutant{
	{name: "acknowledge when it is durable here", file: "primary.go",
		old: "lsn = min(lsn, p.acked)", new: "_ = p.acked"},
	{name: "acknowledge before it is durable here", file: "primary.go",
		old: "lsn := c.durable\n", new: "lsn := c.tail.last()\n"},
	{name: "acknowledge what was received, not what is durable", file: "secondary.go",
		old: "m.LSN = c.durable", new: "m.LSN = c.tail.last()"},
	{name: "serve before the tail is durable everywhere", file: "primary.go",
		old: "l.active = l.active || lsn >= l.start", new: "l.active = true"},
	{name: "answer reads at once", file: "primary.go",
		old: "lsn != 0 {\n\t\tc.lead.reads", new: "lsn > c.tail.last() {\n\t\tc.lead.reads"},
	{name: "accept any LSN", file: "secondary.go",
		old: "if m.Entry.LSN == c.tail.next && c.reliable() {", new: "{\n\t\t\tm.Entry.LSN = c.tail.next"},
	{name: "forget the token", file: "core.go",
		old: "c.tokens[e.Op.Ref.Volume] = e.Op.Token", new: "_ = e.Op.Token"},
	{name: "seal without a promise", file: "core.go",
		old: "c.promise(e.Epoch)\n\tc.reply", new: "c.reply"},
	{name: "promise but go on as primary", file: "core.go",
		old: "if c.lead != nil {\n\t\tc.resign()", new: "if false {\n\t\tc.resign()"},
	{name: "promise but go on as secondary", file: "core.go",
		old: "c.promised, c.standing = epoch, 0", new: "c.promised = epoch"},
	{name: "forget the promise in a crash", file: "core.go",
		old: "promised:  s.Promised,", new: ""},
	{name: "resume the old epoch after a restart", file: "core.go",
		old: "m != nil && m.Incarnation == c.run", new: "m != nil"},
	{name: "heed messages of any epoch", file: "secondary.go",
		old: "if m.Epoch != c.config.Epoch {", new: "if false {"},
	{name: "keep acknowledgements across epochs", file: "primary.go",
		old: "peer{node: m.Node, syncing", new: "peer{node: m.Node, acked: c.tail.last(), trusted: true, syncing"},
	{name: "do not resend the tail", file: "primary.go",
		old: "for lsn := max(m.Last+1, c.tail.first); lsn < c.tail.next; lsn++ {", new: "for lsn := c.tail.next; lsn < c.tail.next; lsn++ {"},
	{name: "drop the tail when it is durable here", file: "secondary.go",
		old: "c.commitTo(m.Entry.Commit)", new: "c.commitTo(m.Entry.LSN)"},
	{name: "give a client up without an answer", file: "primary.go",
		old: "c.refuse(s.ticket, chunk.ErrStaleEpoch)\n\t\t\ts.asked = false", new: "s.asked = false"},
	{name: "answer a client twice", file: "primary.go",
		old: "c.refuse(s.ticket, chunk.ErrStaleEpoch)\n\t\t\ts.asked = false", new: "c.refuse(s.ticket, chunk.ErrStaleEpoch)"},
	{name: "do not probe over a new connection", file: "core.go",
		old: "c.probe(p)", new: "_ = p"},
	{name: "do not repeat the status over a new connection", file: "core.go",
		old: "c.sendStatus()", new: ""},
	{name: "take a late status for the present one", file: "primary.go",
		old: "if m.Round != p.round ||", new: "if"},
	{name: "go on with a member that lacks what is committed", file: "primary.go",
		old: "m.Last < p.floor ||", new: ""},
	{name: "take an old configuration", file: "core.go",
		old: "config.Epoch < c.promised || config.Epoch <= c.config.Epoch", new: "config.Epoch == c.config.Epoch"},
	{name: "forget the tokens in a crash", file: "core.go",
		old: "tokens:    s.Tokens,", new: ""},
	{name: "forget the tail in a crash", file: "core.go",
		old: "newTail(s.Last, s.Tail)", new: "newTail(s.Last, nil)"},
	{name: "look for one overlapping write, not the last", file: "tail.go",
		old: "for lsn := t.next; lsn > t.first; {\n\t\tlsn--", new: "for lsn := t.first; lsn < t.next; lsn++ {"},
	{name: "answer reads of a former epoch", file: "primary.go",
		old: "for _, r := range c.lead.reads {\n\t\tc.refuse(r.ticket, chunk.ErrStaleEpoch)", new: "for _, r := range c.lead.reads {\n\t\tc.reply(Reply{Ticket: r.ticket})"},
	{name: "acknowledge what a former epoch did not commit", file: "primary.go",
		old: "c.refuse(s.ticket, chunk.ErrStaleEpoch)\n\t\t\ts.asked = false", new: "c.reply(Reply{Ticket: s.ticket})\n\t\t\ts.asked = false"},
	{name: "promote the shorter history", file: "leader_test.go",
		old: "a.last > best.last ||", new: "a.last < best.last ||"},
	{name: "accept a writer that is fenced", file: "primary.go",
		old: "return op.Token.Compare(c.tokens[op.Ref.Volume]) < 0", new: "return false"},
	{name: "order operations with one member in sync and one syncing", file: "primary.go",
		old: "inSync(&c.config) >= minInSync", new: "len(l.peers)+1 >= minInSync"},

	// Bringing members up to date.
	{name: "take a member that is syncing for one in sync", file: "core.go",
		old: "c.standing = m.State", new: "c.standing = map[chunk.MemberState]chunk.MemberState{chunk.InSync: chunk.InSync, chunk.Syncing: chunk.InSync, chunk.Out: chunk.Out}[m.State]"},
	{name: "wait for a member that is not needed yet", file: "primary.go",
		old: "return !p.syncing || p.needed", new: "return true"},
	{name: "commit without a member that is needed", file: "primary.go",
		old: "return !p.syncing || p.needed", new: "return !p.syncing"},
	{name: "call a member synced that is not needed", file: "sync.go",
		old: "return p.needed && p.acked", new: "return p.acked"},
	{name: "call a member synced before what it pulled is committed", file: "sync.go",
		old: "&& c.commit >= p.joined", new: ""},
	{name: "call a member synced that lacks what is committed", file: "sync.go",
		old: "p.needed && p.acked >= c.commit &&", new: "p.needed &&"},
	{name: "release a member that is synced when it fails", file: "sync.go",
		old: "p.needed && !c.synced(p) {", new: "p.needed {"},
	{name: "need a member that begins anew", file: "sync.go",
		old: "p.needed && !c.synced(p) {", new: "false {"},
	{name: "begin anew with a member that is synced", file: "primary.go",
		old: "if p.syncing && !p.needed {\n\t\t\tc.reset", new: "if p.syncing {\n\t\t\tc.reset"},
	{name: "go on with the history of a member that is syncing", file: "primary.go",
		old: "if p.syncing && !p.needed {\n\t\t\tc.reset(p)\n\t\t\treturn\n\t\t}", new: ""},
	{name: "write to what is being copied", file: "sync.go",
		old: "h := &c.lead.holds[i]; op.Ref == h.Ref &&", new: "h := &c.lead.holds[i]; false &&"},
	{name: "copy before all is durable that was ordered", file: "sync.go",
		old: "!h.granted && h.until <= c.durable", new: "!h.granted"},
	{name: "give up what waits for a hold", file: "sync.go",
		old: "\t\tc.submit(deferred[i])\n", new: "\t\t_ = deferred[i]\n"},
	{name: "give up what waits at the end of an epoch", file: "primary.go",
		old: "for _, s := range c.lead.deferred {\n\t\tc.refuse", new: "for _, s := range c.lead.deferred[:0] {\n\t\tc.refuse"},
	{name: "take a copy that comes late", file: "secondary.go",
		old: "if joined && m.LSN == c.tail.last() {", new: "if joined {"},
	{name: "take a copy of an older stream", file: "secondary.go",
		old: "if joined && m.LSN == c.tail.last() {", new: "{",
		more: []edit{{"c.standing == chunk.Syncing && c.round != 0 && m.Round == c.round", "c.standing == chunk.Syncing"}}},
	{name: "take entries of a stream that was not begun", file: "core.go",
		old: "return c.standing == chunk.InSync || c.standing == chunk.Syncing && c.joined != 0", new: "return c.standing != 0"},
	{name: "flatten and purge while a member is syncing", file: "primary.go",
		old: "if c.lead.syncing() &&", new: "if false &&"},
	{name: "put a member on the stream at the commit point", file: "sync.go",
		old: "p.joined, p.acked, p.idle = c.tail.last(), 0, 0", new: "p.joined, p.acked, p.idle = c.commit, 0, 0"},
	{name: "forget the tokens when put on a stream", file: "secondary.go",
		old: "maps.Copy(c.tokens, c.arrived)", new: ""},
	{name: "keep the tokens of a history that is left", file: "secondary.go",
		old: "c.tokens = make(map[chunk.VolumeID]chunk.Token, len(c.arrived))", new: "",
		by: "TestTokensArriveWhole"},
	{name: "wait for ever for a member that does not keep up", file: "primary.go",
		old: "p.idle == maxIdle && p.syncing && p.streaming", new: "false",
		by: "TestBackPressure"},
	{name: "need a member that has pulled on another stream", file: "sync.go",
		old: "|| p.round != round", new: ""},

	// The store's and the leader's part, as the simulator plays it.
	{name: "trust what a cut off resync has left", file: "disk_test.go",
		old: "if d.whole {", new: "if true {"},
	{name: "trust what is beyond the commit point", file: "disk_test.go",
		old: "d.whole, d.trusted = false, d.commit", new: "d.whole, d.trusted = false, chunk.LSN(len(d.entries))"},
	{name: "compare before all can be seen that was ordered", file: "pull_test.go",
		old: "if chunk.LSN(len(from.disk.entries)) < p.end {", new: "if false {"},
	{name: "say that all is here before the copies are durable", file: "pull_test.go",
		old: "case a.sent && (a.equal || n.disk.copies[a.part] > a.copies):", new: "case a.sent:"},
	{name: "act on a report of an older configuration", file: "leader_test.go",
		old: "fresh := r.epoch == s.config.Epoch", new: "fresh := true"},
}

var seedRE = regexp.MustCompile(`(?m)seed (\d+): (.*)$`)

func (m *mutant) mustBeCaught(t *testing.T) {
	source, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(source)
	for _, e := range append([]edit{{m.old, m.new}}, m.more...) {
		if n := strings.Count(text, e.old); n != 1 {
			t.Fatalf("%q occurs %d times in %s", e.old, n, m.file)
		}
		text = strings.Replace(text, e.old, e.new, 1)
	}
	dir := t.TempDir()
	mutated := filepath.Join(dir, m.file)
	if err := os.WriteFile(mutated, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	original, err := filepath.Abs(m.file)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: mutated}})
	if err != nil {
		t.Fatal(err)
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	test := cmp.Or(m.by, "TestSim")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-overlay", overlayFile, "-vet=off", "-run", "^"+test+"$", "-seeds", strconv.Itoa(mutantSeeds), ".").CombinedOutput()
	found := seedRE.FindSubmatch(out)
	switch {
	case err == nil:
		t.Errorf("not caught")
	case m.by != "" && bytes.Contains(out, []byte("--- FAIL: "+m.by)):
		t.Logf("caught by %s", m.by)
	case found == nil:
		t.Errorf("failed otherwise: %v\n%s", err, out[max(0, len(out)-2000):])
	default:
		t.Logf("caught with seed %s: %s", found[1], found[2])
	}
}
