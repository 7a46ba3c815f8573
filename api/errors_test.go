package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

func TestEveryKindHasACode(t *testing.T) {
	t.Parallel()
	for _, kind := range fsm.Kinds() {
		code, ok := codes[kind]
		if !ok {
			t.Errorf("kind %d has no code", kind)
		}
		if code == client.OK || code == client.Internal || code.Message() == "" {
			t.Errorf("kind %d has the code %d", kind, code)
		}
	}
	if len(codes) != len(fsm.Kinds()) {
		t.Errorf("%d codes for %d kinds", len(codes), len(fsm.Kinds()))
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	const perhaps = "may have taken effect"
	for name, c := range map[string]struct {
		err    error
		code   client.Code
		detail string
	}{
		"a refusal":         {fmt.Errorf("apply: %w", &fsm.Error{Kind: fsm.Exists, Detail: "/v exists"}), client.Exists, "/v exists"},
		"our own":           {fmt.Errorf("wrapped: %w", refuse(client.BadRequest, "%d", 1)), client.BadRequest, "1"},
		"an unknown end":    {fmt.Errorf("%w: lost", cluster.ErrUnknown), client.Stopped, perhaps},
		"too late":          {fmt.Errorf("read: %w", context.DeadlineExceeded), client.Stopped, perhaps},
		"nobody listens":    {context.Canceled, client.Stopped, perhaps},
		"a kind of its own": {&fsm.Error{Kind: 255, Detail: "?"}, client.Internal, ""},
		"a surprise":        {errors.New("secret"), client.Internal, ""},
	} {
		got := explain(c.err)
		if got.Code != c.code || !strings.Contains(got.Detail, c.detail) || c.detail == "" && got.Detail != "" {
			t.Errorf("%s: %d, %q", name, got.Code, got.Detail)
		}
	}
}
