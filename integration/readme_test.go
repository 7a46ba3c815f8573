package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestReadme runs what the README shows, on other ports and in another
// directory than it says. Every line must succeed, and nothing be refused but
// where the text says so.
func TestReadme(t *testing.T) {
	needTools(t)
	t.Parallel()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := start(t, dir)
	here := strings.NewReplacer(
		"127.0.0.1:5555", c.server(0),
		"127.0.0.1:10809", fmt.Sprintf("127.0.0.1:%d", c.Port+nbdOffset),
		"bin/localsnap", binary,
		"/tmp/", dir+"/",
		"-d /usr/include", "-d "+filepath.Join(GoSource(t.Context()), "net"),
	)
	const preamble = `set -euo pipefail
curl() { command curl -sS "$@" | tee -a replies; } # it succeeds when the service refuses; the replies tell
`
	var online, offline strings.Builder
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		switch {
		case strings.HasPrefix(block[1], "make "): // the cluster is running
		case strings.HasPrefix(block[1], "bin/localsnap store "): // of a chunkserver that is stopped
			offline.WriteString(here.Replace(block[1]))
		default:
			online.WriteString(here.Replace(block[1]))
		}
	}
	ctx := testContext(t, 3*time.Minute)
	tell := func(script string) {
		t.Helper()
		if out, err := run(ctx, dir, "bash", "-xc", preamble+script); err != nil || script == "" {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	tell("export LOCALSNAP_SERVERS=" + c.server(0) + "\n" + online.String())
	if _, err := c.Stop(); err != nil {
		t.Error(err)
	}
	tell(offline.String())
	replies, err := os.ReadFile(filepath.Join(dir, "replies"))
	if err != nil {
		t.Fatal(err)
	}
	for _, reply := range regexp.MustCompile(`\{"Code":"-[^\n}]*`).FindAllString(string(replies), -1) {
		if !strings.Contains(reply, `"-8"`) { // of the snapshot that is gone
			t.Errorf("refused: %s", reply)
		}
	}
}
