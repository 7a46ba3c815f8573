package replica

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var mutants = flag.Bool("mutants", false, "compile each mutant of the protocol and see the simulator catch it")

// A mutant is the protocol with one rule broken.
type mutant struct {
	name     string
	file     string
	old, new string
}

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
		old: "if m.Round != p.round {", new: "if false {"},
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
	{name: "rely on a member that is still syncing", file: "core.go",
		old: "c.standing = m.State", new: "c.standing = chunk.InSync"},
	{name: "call a member synced that is not needed", file: "sync.go",
		old: "return p.needed && p.acked", new: "return p.acked"},
	{name: "call a member synced before its stream is committed", file: "sync.go",
		old: "&& c.commit >= p.joined", new: ""},
	{name: "call a member synced that lacks what is committed", file: "sync.go",
		old: "p.needed && p.acked >= c.commit &&", new: "p.needed &&"},
	{name: "commit without a member that is needed", file: "primary.go",
		old: "return !p.syncing || p.needed", new: "return !p.syncing"},
	{name: "let go of a member that is synced when its connection breaks", file: "primary.go",
		old: "if p.syncing && !c.synced(p) {", new: "if p.syncing {"},
	{name: "let go of a member that is synced when it lags", file: "sync.go",
		old: "if !c.synced(p) {\n\t\tp.needed", new: "if true {\n\t\tp.needed"},
	{name: "write to what is being copied", file: "sync.go",
		old: "if h.Ref == op.Ref && h.Off", new: "if false && h.Off"},
	{name: "copy before all is durable that was ordered", file: "sync.go",
		old: "!h.granted && h.until <= c.durable", new: "!h.granted"},
	{name: "take a copy that comes late", file: "secondary.go",
		old: "joined && m.LSN == c.tail.last()", new: "true"},
	{name: "flatten and purge while a member is syncing", file: "primary.go",
		old: "if c.lead.syncing() &&", new: "if false &&"},
	{name: "put a member on the stream at the commit point", file: "sync.go",
		old: "p.joined, p.acked, p.needed, p.idle = c.tail.last(), 0", new: "p.joined, p.acked, p.needed, p.idle = c.commit, 0"},
	{name: "go on with a member's history instead of the primary's", file: "primary.go",
		old: "if p.syncing && !p.needed {\n\t\t\tc.reset(p)\n\t\t\treturn\n\t\t}", new: ""},
	{name: "forget the tokens when put on a stream", file: "secondary.go",
		old: "maps.Copy(c.tokens, c.arrived)", new: ""},
	{name: "keep the tokens of a history that is left", file: "secondary.go",
		old: "c.tokens = make(map[chunk.VolumeID]chunk.Token, len(c.arrived))", new: ""},
	{name: "heed a pull of another round", file: "sync.go",
		old: "|| p.round != round", new: ""},
	{name: "trust what was not brought up to date", file: "disk_test.go",
		old: "if d.whole {", new: "if true {"},
	{name: "trust a copy like what it replaces", file: "disk_test.go",
		old: "c.changed = chunk.LSN(len(d.entries)) + 1", new: "c.changed = d.content[b].changed"},
	{name: "compare before all can be seen that was ordered", file: "pull_test.go",
		old: "if chunk.LSN(len(from.disk.entries)) < p.end {", new: "if false {"},
	{name: "acknowledge what a former epoch did not commit", file: "primary.go",
		old: "c.refuse(s.ticket, chunk.ErrStaleEpoch)\n\t\t\ts.asked = false", new: "c.reply(Reply{Ticket: s.ticket})\n\t\t\ts.asked = false"},
}

var seedRE = regexp.MustCompile(`(?m)seed (\d+): (.*)$`)

func (m *mutant) mustBeCaught(t *testing.T) {
	source, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), m.old); n != 1 {
		t.Fatalf("%q occurs %d times in %s", m.old, n, m.file)
	}
	dir := t.TempDir()
	mutated := filepath.Join(dir, m.file)
	if err := os.WriteFile(mutated, []byte(strings.Replace(string(source), m.old, m.new, 1)), 0o600); err != nil {
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
	out, err := exec.CommandContext(t.Context(), "go", "test", "-overlay", overlayFile, "-run", "^TestSim$", "-seeds", "10000", ".").CombinedOutput()
	found := seedRE.FindSubmatch(out)
	switch {
	case err == nil:
		t.Errorf("not caught")
	case found == nil:
		t.Errorf("failed otherwise: %v\n%s", err, out[max(0, len(out)-2000):])
	default:
		t.Logf("caught with seed %s: %s", found[1], found[2])
	}
}
