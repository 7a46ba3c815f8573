package api

import (
	"bufio"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/localsnap/localsnap/api/client"
)

// TestMatrix holds the table testdata/codes against the scripts that
// TestGolden plays. With -v it prints which line of which script reaches each
// code of each action.
func TestMatrix(t *testing.T) {
	t.Parallel()
	m := readMatrix(t)
	for _, path := range glob(t, "testdata/*.txt") {
		m.read(t, path)
	}
	actionsInTable := map[string]bool{noAction: true}
	for _, row := range m.rows {
		actionsInTable[row.action] = true
		cells := []string{}
		for _, code := range row.codes {
			if row.reached[code] == "" {
				t.Errorf("%s: no script reaches code %s", row.name, code)
			}
			cells = append(cells, code+" "+row.reached[code])
		}
		for code, where := range row.reached {
			if !slices.Contains(row.codes, code) {
				t.Errorf("%s: %s reaches code %s, which is not in the table", row.name, where, code)
			}
		}
		t.Logf("%-26s %s", row.name, strings.Join(cells, ", "))
	}
	for name := range actions {
		if !actionsInTable[name] {
			t.Errorf("action %s is not in the table", name)
		}
	}
	m.checkCodes(t)
}

// matrix is what testdata/codes says.
type matrix struct {
	rows   []*matrixRow
	tested map[string]string // codes that a Go test reaches, to its name
	never  map[string]bool
}

// matrixRow is one action, or one way to ask for it.
type matrixRow struct {
	name    string
	action  string
	given   []string // parameters
	codes   []string
	reached map[string]string // to the first place, script:line
}

// noAction stands for what is no action in the table.
const noAction = "(none)"

func readMatrix(t *testing.T) *matrix {
	t.Helper()
	m := &matrix{tested: map[string]string{}, never: map[string]bool{}}
	for _, line := range lines(t, "testdata/codes") {
		words := strings.Fields(line)
		name, codes, isRow := strings.Cut(line, ":")
		switch {
		case line == "" || line[0] == '#':
		case words[0] == "any":
			m.tested[words[1]] = words[2]
		case words[0] == "never":
			m.never[words[1]] = true
		case isRow:
			given := strings.Fields(name)
			m.rows = append(m.rows, &matrixRow{
				name: name, action: given[0], given: given[1:], codes: strings.Fields(codes), reached: map[string]string{},
			})
		default:
			t.Fatalf("testdata/codes: what is %q?", line)
		}
	}
	return m
}

var codeOfReply = regexp.MustCompile(`"Code":"(-?\d+)"`)

// read takes in what a script reaches.
func (m *matrix) read(t *testing.T, path string) {
	t.Helper()
	script := lines(t, path)
	for i, line := range script {
		name, query, ok := strings.Cut(line, "> ")
		if !ok || strings.Contains(name, " ") || i+1 == len(script) {
			continue
		}
		reply := codeOfReply.FindStringSubmatch(script[i+1])
		row := m.row(query)
		if reply == nil || row == nil {
			t.Errorf("%s:%d: no reply follows, or no row of the table fits", path, i+1)
		} else if row.reached[reply[1]] == "" {
			row.reached[reply[1]] = fmt.Sprintf("%s:%d", filepath.Base(path), i+1)
		}
	}
}

// row returns the row that a query belongs to.
func (m *matrix) row(query string) *matrixRow {
	p := parse(query, 0)
	name, err := url.PathUnescape(p.raw["Action"])
	if _, known := actions[name]; err != nil || !known {
		name = noAction
	}
	for _, row := range m.rows {
		if row.action == name && !slices.ContainsFunc(row.given, func(parameter string) bool { return !p.has(parameter) }) {
			return row
		}
	}
	return nil
}

// checkCodes makes sure that the table accounts for every code there is.
func (m *matrix) checkCodes(t *testing.T) {
	t.Helper()
	var tests strings.Builder
	for _, path := range glob(t, "*_test.go") {
		tests.WriteString(strings.Join(lines(t, path), "\n"))
	}
	for code := client.OK; code.Message() != ""; code-- {
		text := fmt.Sprint(int(code))
		kinds := []bool{
			slices.ContainsFunc(m.rows, func(row *matrixRow) bool { return slices.Contains(row.codes, text) }),
			m.tested[text] != "",
			m.never[text],
		}
		kinds = slices.DeleteFunc(kinds, func(is bool) bool { return !is })
		if len(kinds) != 1 {
			t.Errorf("code %s is not in exactly one part of the table", text)
		}
		if test := m.tested[text]; test != "" && !strings.Contains(tests.String(), "\nfunc "+test+"(") {
			t.Errorf("code %s: there is no %s", text, test)
		}
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	return paths
}

func lines(t *testing.T, path string) (lines []string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return lines
}
