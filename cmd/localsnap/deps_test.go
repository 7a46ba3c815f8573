package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/localsnap/localsnap/"

// imports says which of our packages each may import. An arrow that is not
// listed is refused; the reason of a wall stands beside it.
var imports = map[string][]string{
	"chunkserver/chunk":   {}, // the words: everybody speaks them, they know nobody
	"chunkserver/store":   {"chunkserver/chunk"},
	"chunkserver/replica": {"chunkserver/chunk"}, // pure: the simulator runs the very code that serves
	"chunkserver/wire":    {"chunkserver/chunk", "chunkserver/replica"},
	"chunkserver":         {"chunkserver/chunk", "chunkserver/store", "chunkserver/replica", "chunkserver/wire"},
	"chunkserver/volume":  {"chunkserver/chunk", "chunkserver/wire"}, // never the store: data is reached through a primary
	"chunkserver/nbd":     {},                                        // any device can be exported; fuzzed alone
	"fsm":                 {"chunkserver/chunk"},                     // knows neither Raft nor clocks, so a log is a slice
	"cluster":             {"fsm"},
	"cluster/coordinator": {"cluster", "fsm", "chunkserver/chunk", "chunkserver/wire"},
	"api":                 {"api/client", "cluster", "fsm", "chunkserver/chunk"},
	"api/client":          {}, // for anybody's programs: carries nothing of ours along
	"cmd/localsnap": {"api", "api/client", "cluster", "cluster/coordinator", "fsm",
		"chunkserver", "chunkserver/chunk", "chunkserver/volume", "chunkserver/nbd", "chunkserver/wire",
		"chunkserver/store"}, // to look into the directory of one that is down
	"integration":         {"api/client"}, // drives the binary, as a user does
	"integration/demo":    {"integration"},
	"integration/bench":   {"integration", "api/client"},
	"integration/nemesis": {"api/client"},
	"integration/figures": {}, // reads what go test prints
}

func TestImports(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "../../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(pkg.ImportPath, module)
		allowed, known := imports[name]
		if !known {
			t.Errorf("package %s is in no room: list it here with what it may import", name)
		}
		for _, imported := range pkg.Imports {
			if ours, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s must not import %s", name, ours)
			}
		}
	}
}
