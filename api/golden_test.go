package api

import (
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/fsm"
)

var rewrite = flag.Bool("rewrite", false, "write the replies as they are into testdata")

// TestGolden plays the scripts in testdata, each in a cluster of its own.
//
// A script consists of lines. Those with > ask the service, and the reply
// follows them; a word before the > names the UUID in the reply. Those with !
// do what happens without a request. In both, {word} stands for a UUID and
// {x255} for 255 times the letter x.
func TestGolden(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts: %v, %v", scripts, err)
	}
	for _, path := range scripts {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			golden(t, path)
		})
	}
}

// golden plays one script.
func golden(t *testing.T, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := &play{t: t, uuids: map[string]string{}}
	p.begin(func(*fsm.Settings) {})
	var out strings.Builder
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		out.WriteString(lines[i] + "\n")
		if name, query, ok := strings.Cut(lines[i], "> "); ok && !strings.Contains(name, " ") {
			for i+1 < len(lines) && lines[i+1] != "" { // the reply as it was
				i++
			}
			out.WriteString(p.ask(name, query) + "\n")
		} else if event, ok := strings.CutPrefix(lines[i], "! "); ok {
			p.event(strings.Fields(p.expand(event)))
		}
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(string(data), out.String()); diff != "" {
		t.Errorf("replies (-script +server):\n%s", diff)
	}
}

// play is a script being played.
type play struct {
	t       *testing.T
	world   *world
	handler http.Handler
	uuids   map[string]string // by their names
	long    []string          // repetitions that were asked for, by their names
}

// begin starts with an empty cluster.
func (p *play) begin(change func(*fsm.Settings)) {
	p.world = newWorld(p.t, change)
	server := &Server{Metadata: p.world, Now: (&clock{now: epoch}).Now}
	p.handler = server.Handler()
}

// ask sends a query and returns the reply as scripts show it.
func (p *play) ask(name, query string) string {
	p.t.Helper()
	r := httptest.NewRequest(http.MethodGet, servicePath, nil)
	asked := p.expand(query)
	r.URL.RawQuery = asked
	r.Header.Set(headerRequestID, "id")
	response := do(p.handler, r)
	text := body(p.t, response)
	p.check(query, response, text)
	var reply struct{ UUID string }
	if err := json.Unmarshal([]byte(text), &reply); err != nil {
		p.t.Fatalf("%s: %v in %s", query, err, text)
	}
	if name != "" {
		p.uuids[name] = reply.UUID
	}
	return strconv.Itoa(response.StatusCode) + " " + p.collapse(asked, text)
}

// check makes sure of what scripts don't show.
func (p *play) check(query string, response *http.Response, text string) {
	p.t.Helper()
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Content-Length": strconv.Itoa(len(text)), headerRequestID: "id",
	} {
		if got := response.Header.Get(name); got != want {
			p.t.Errorf("%s: %s is %q, want %q", query, name, got, want)
		}
	}
	if strings.Contains(text, "null") {
		p.t.Errorf("%s: null in %s", query, text)
	}
}

var placeholder = regexp.MustCompile(`\{(\w+?)(\d*)\}`)

// expand puts values into the placeholders of a query.
func (p *play) expand(query string) string {
	return placeholder.ReplaceAllStringFunc(query, func(text string) string {
		if id, ok := p.uuids[strings.Trim(text, "{}")]; ok {
			return id
		}
		m := placeholder.FindStringSubmatch(text)
		n, err := strconv.Atoi(m[2])
		if err != nil {
			p.t.Fatalf("%s in %s has no value", text, query)
		}
		p.long = append(p.long, text, strings.Repeat(m[1], n))
		return strings.Repeat(m[1], n)
	})
}

var (
	anyUUID = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	lists   = strings.NewReplacer(`[{`, "[\n  {", `},{`, "},\n  {", `}]`, "}\n]")
)

// collapse puts placeholders in place of values, and the elements of lists on
// lines of their own.
func (p *play) collapse(asked, text string) string {
	text = strings.TrimSuffix(text, "\n")
	for i := 0; i < len(p.long); i += 2 {
		text = strings.ReplaceAll(text, p.long[i+1], p.long[i])
	}
	for name, id := range p.uuids {
		if id != "" {
			text = strings.ReplaceAll(text, id, "{"+name+"}")
		}
	}
	for _, id := range anyUUID.FindAllString(text, -1) {
		if id != exampleUUID && !strings.Contains(asked, id) {
			p.t.Errorf("a UUID has no name in %s", text)
		}
	}
	return lists.Replace(text)
}

// exampleUUID is what Details show as an example.
const exampleUUID = "26ffe85b-55e8-46c4-8823-0104fcf9b362"

// event does what happens without a request.
func (p *play) event(words []string) {
	p.t.Helper()
	number := func(i int) int {
		n, err := strconv.Atoi(words[i])
		if err != nil {
			p.t.Fatalf("%v: %v", words, err)
		}
		return n
	}
	switch words[0] {
	case "cluster": // cluster <snapshots per volume> <retention>: start anew
		p.begin(func(s *fsm.Settings) { s.SnapshotLimit, s.Retention = number(1), uint64(number(2)) })
	case "pool": // pool <name>
		node := p.world.must(p.t, fsm.RegisterNode{Store: uuid.New(), Address: "test"}).(fsm.Node)
		p.world.must(p.t, fsm.CreatePool{Name: words[1], Copysets: []chunk.Copyset{{
			Epoch: 1, Members: []chunk.Member{{Node: node.ID, State: chunk.InSync}},
		}}})
	case "chunkserver":
		p.world.must(p.t, fsm.RegisterNode{Store: uuid.New(), Address: "test"})
	case "attach": // attach <path>
		p.world.must(p.t, fsm.Attach{Path: words[1], Gateway: "test"})
	case "flatten": // flatten <path> <percent>
		v := p.world.volume(p.t, words[1])
		p.world.must(p.t, fsm.FlattenProgress{Volume: v.ID, Percent: number(2)})
		if number(2) == 100 {
			p.world.must(p.t, fsm.FlattenDone{Volume: v.ID})
		}
	case "purge": // purge <path> <percent>
		var purge fsm.Purge
		if err := p.world.fsm.View(func(s *fsm.State) (err error) {
			purge, err = s.Purge(p.world.volume(p.t, words[1]).ID)
			return err
		}); err != nil {
			p.t.Fatal(err)
		}
		p.world.must(p.t, fsm.PurgeProgress{Snapshots: purge.Snapshots, Percent: number(2)})
		if number(2) == 100 {
			p.world.must(p.t, purge.Done())
		}
	default:
		p.t.Fatalf("%v: no such event", words)
	}
}
