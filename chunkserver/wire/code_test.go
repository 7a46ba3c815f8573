package wire

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Every error that chunk and this package define has a code, no two the same,
// and arrives as what it was. The errors are found in the sources, so that a
// new one can't be forgotten.
func TestEveryErrorHasACode(t *testing.T) {
	t.Parallel()
	known := make(map[string]bool)
	for _, row := range codes {
		known[row.err.Error()] = true
	}
	for _, file := range []string{"../chunk/errors.go", "code.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fun, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || fun.Sel.Name != "New" {
				return true
			}
			found++
			if text := strings.Trim(call.Args[0].(*ast.BasicLit).Value, `"`); !known[text] {
				t.Errorf("%s: the error %q has no code", file, text)
			}
			return true
		})
		if found == 0 {
			t.Errorf("%s defines no errors", file)
		}
	}
}

func TestErrorsArriveAsWhatTheyWere(t *testing.T) {
	t.Parallel()
	ofCode := make(map[Code]error)
	for _, row := range codes {
		if row.code == codeOK || row.code == codeInternal {
			t.Errorf("%v has the code %d", row.err, row.code)
		}
		sent := fmt.Errorf("some context: %w", row.err)
		if got := codeOf(sent); got != row.code {
			t.Errorf("the code of %v is %d, want %d", sent, got, row.code)
		}
		first, taken := ofCode[row.code]
		if !taken {
			first = row.err
			ofCode[row.code] = first
		} else if first != ErrUnavailable {
			t.Errorf("%v and %v have the same code", first, row.err)
		}
		got := remoteError(row.code, []byte("text"))
		var remote *RemoteError
		if !errors.Is(got, first) || !errors.As(got, &remote) || remote.Text != "text" {
			t.Errorf("%v arrives as %v", row.err, got)
		}
		for _, other := range codes {
			if other.code != row.code && errors.Is(got, other.err) {
				t.Errorf("%v arrives as %v too", row.err, other.err)
			}
		}
	}
	if codeOf(nil) != codeOK || codeOf(errors.New("boom")) != codeInternal {
		t.Error("nil or an unknown error has a code of its own")
	}
	for _, code := range []Code{codeInternal, 999} {
		got := remoteError(code, []byte("boom"))
		for _, row := range codes {
			if errors.Is(got, row.err) {
				t.Errorf("code %d arrives as %v", code, row.err)
			}
		}
		if !strings.Contains(got.Error(), "boom") {
			t.Errorf("code %d arrives without its text: %v", code, got)
		}
	}
}

func TestLeaderOf(t *testing.T) {
	t.Parallel()
	crossed := func(err error) error {
		return fmt.Errorf("greet: %w", remoteError(codeOf(err), []byte(err.Error())))
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{crossed(NotLeader("10.0.0.1:7000")), "10.0.0.1:7000"},
		{crossed(NotLeader("")), ""},
		{crossed(chunk.ErrInvalid), ""},
		{context.Canceled, ""},
		{nil, ""},
	} {
		if got := LeaderOf(c.err); got != c.want {
			t.Errorf("LeaderOf(%v) = %q, want %q", c.err, got, c.want)
		}
	}
	if err := crossed(NotLeader("x")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("%v is not ErrNotLeader", err)
	}
}
