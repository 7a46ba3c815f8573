package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// table is the contract's, word for word.
const table = `
0	Exec success.	200
-1	Internal error.	500
-2	Server init fail.	500
-3	Server start fail.	500
-4	Service is stop	500
-5	BadRequest:"Invalid request."	400
-6	Task already exist.	500
-7	Invalid user.	500
-8	File not exist.	500
-9	File status invalid.	500
-10	Chunk size not aligned.	500
-11	FileName not match.	500
-12	Cannot delete unfinished.	500
-13	Cannot create when has error.	500
-14	Cannot cancel finished.	500
-15	Invalid snapshot.	500
-16	Cannot delete when using.	500
-17	Cannot clean task unfinished.	500
-18	Snapshot count reach the limit.	500
-19	File exist.	500
-20	Task is full.	500
-21	not support.	500
-22	File is under snapshot	500
-23	File is occuiped	500
-24	Invalid argument.	500
`

func TestCodesAreTheContracts(t *testing.T) {
	t.Parallel()
	var got strings.Builder
	for c := OK; c.Message() != ""; c-- {
		text, err := c.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "\n%s\t%s\t%d", text, c.Message(), c.HTTPStatus())
	}
	if got.WriteString("\n"); got.String() != table {
		t.Errorf("codes are %s", got.String())
	}
	if InvalidArgument.Message() != "Invalid argument." || Exists.Message() != "File exist." {
		t.Error("a code has the number of another")
	}
	for _, c := range []Code{1, -25, -1 << 62} {
		if c.Message() != "" {
			t.Errorf("%d has the message %q", c, c.Message())
		}
	}
}

func TestCodeInJSON(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Code{`"0"`: OK, `"-8"`: NotExist, `"-99"`: -99} {
		var got Code
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s is %d, %v", text, got, err)
		}
		if back, err := json.Marshal(want); err != nil || string(back) != text {
			t.Errorf("%d is %s, %v", want, back, err)
		}
	}
	for _, text := range []string{`""`, `"x"`, `"1.5"`, `-8`, `true`} {
		var got Code
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s is %d", text, got)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("DeleteFile: %w", &Error{Code: Occupied})
	if !Refused(err, Occupied) || Refused(err, NotExist) || Refused(nil, OK) || Refused(errors.New("no answer"), OK) {
		t.Error("a refusal is not told from other codes, success or failure")
	}
}

func TestErrorSaysAllItKnows(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]*Error{
		"File not exist. (-8)":                    {Code: NotExist, Message: "File not exist."},
		"File not exist. (-8): /v does not exist": {Code: NotExist, Message: "File not exist.", Detail: "/v does not exist"},
	} {
		if e.Error() != want {
			t.Errorf("%q, want %q", e.Error(), want)
		}
	}
	var e *Error
	if err := fmt.Errorf("wrapped: %w", &Error{Code: Exists}); !errors.As(err, &e) || e.Code != Exists {
		t.Error("the code is lost")
	}
}
