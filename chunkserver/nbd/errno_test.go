package nbd

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

func TestVerdicts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err    error
		errno  uint32
		option uint32
	}{
		{ErrInvalid, 22, repErrInvalid},
		{ErrReadOnly, 1, repErrPolicy},
		{ErrNoSpace, 28, repErrPolicy},
		{ErrShutdown, 108, repErrShutdown},
		{ErrUnknownExport, 5, repErrUnknown},
		{ErrBusy, 5, repErrPolicy},
		{context.Canceled, 108, repErrShutdown},
		{context.DeadlineExceeded, 5, repErrUnknown},
		{errors.New("anything"), 5, repErrUnknown},
	}
	for _, test := range tests {
		for _, err := range []error{test.err, fmt.Errorf("volume: %w", test.err)} {
			if v := judge(err); v.errno != test.errno || v.option != test.option {
				t.Errorf("%v: errno %d, option reply %#x; want %d, %#x", err, v.errno, v.option, test.errno, test.option)
			}
		}
	}
}

// TestVerdictsAreTotal finds the exported errors in the source, so that none
// can be added without a row.
func TestVerdictsAreTotal(t *testing.T) {
	t.Parallel()
	known := make(map[string]bool)
	for _, v := range verdicts {
		known[v.err.Error()] = true
	}
	file, err := parser.ParseFile(token.NewFileSet(), "errno.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Err") {
			return true
		}
		found++
		text := spec.Values[0].(*ast.CallExpr).Args[0].(*ast.BasicLit).Value
		if !known[strings.Trim(text, `"`)] {
			t.Errorf("%s has no verdict", spec.Names[0].Name)
		}
		return true
	})
	if found != 6 {
		t.Errorf("found %d exported errors, want 6", found)
	}
}

func TestMessageFitsTheProtocol(t *testing.T) {
	t.Parallel()
	got := message(errors.New(strings.Repeat("ü", maxMessage)[1:]))
	if len(got) > maxMessage || strings.ToValidUTF8(got, "") != got || len(got) < maxMessage-4 {
		t.Errorf("message of %d bytes: %q", len(got), got)
	}
}
