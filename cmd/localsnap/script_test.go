package main

import (
	"context"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/localsnap/localsnap/api/client"
)

// The scripts in testdata run commands as users do, on one cluster, each in a
// directory of its own name. Beside testscript's own commands they have:
//
//	localsnap ARG...        succeeds
//	fails CODE ARG...       localsnap ends with an exit code
//	remember NAME PATTERN   sets $NAME to what the pattern matches in the output
func TestScripts(t *testing.T) {
	d, users := startDev(t)
	t.Setenv("LOCALSNAP_SERVERS", d.servers[0].api.Addr().String())
	t.Setenv("LOCALSNAP_USER", "ann")
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		name := strings.TrimSuffix(filepath.Base(script), ".txtar")
		if err := users.CreateDir(t.Context(), client.CreateDirRequest{User: "ann", File: "/" + name}); err != nil {
			t.Fatal(err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:             "testdata",
		ContinueOnError: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("SOCKET", d.gateway.listeners[1].Addr().String())
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"localsnap": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg {
					ts.Fatalf("say which code: fails CODE %v", args)
				}
				expect(ts, "0", args)
			},
			"fails": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 1 {
					ts.Fatalf("usage: fails CODE ARG...")
				}
				expect(ts, args[0], args[1:])
			},
			"remember": remember,
		},
	})
}

// expect carries out a command line that has to end with an exit code.
func expect(ts *testscript.TestScript, code string, args []string) {
	if got := execute(context.Background(), args, ts.Stdout(), ts.Stderr()); strconv.Itoa(got) != code {
		ts.Fatalf("exit code %d, want %s", got, code)
	}
}

func remember(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: remember NAME PATTERN")
	}
	pattern, err := regexp.Compile(args[1])
	ts.Check(err)
	found := pattern.FindString(ts.ReadFile("stdout"))
	if found == "" {
		ts.Fatalf("no match of %s", args[1])
	}
	ts.Setenv(args[0], found)
}
