package api

import (
	"math"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/fsm"
	"pgregory.net/rapid"
)

// refused returns the Detail with which p refused a parameter, or "".
func refused(p *params) string {
	if p.err == nil {
		return ""
	}
	return p.err.Detail
}

func TestBools(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"true": true, "True": true, "TRUE": true, "1": true, "false": false, "False": false, "FALSE": false, "0": false, "": false,
	} {
		p := parse("B="+text, 0)
		if got := p.flag("B"); got != want || p.err != nil {
			t.Errorf("%q is %v, %v", text, got, p.err)
		}
	}
	for _, text := range []string{"yes", "no", "tRUE", "t", "01", "2", "true%20", "null"} {
		p := parse("B="+text, 0)
		if p.flag("B"); !strings.Contains(refused(p), "parameter B") {
			t.Errorf("%q is taken: %v", text, p.err)
		}
	}
}

func TestUUIDs(t *testing.T) {
	t.Parallel()
	want := uuid.MustParse(exampleUUID)
	for _, text := range []string{exampleUUID, strings.ToUpper(exampleUUID)} {
		p := parse("U="+text, 0)
		if got := p.requiredUUID("U"); got != want || p.err != nil {
			t.Errorf("%q is %v, %v", text, got, p.err)
		}
	}
	for _, text := range []string{
		"x", "{" + exampleUUID + "}", "urn:uuid:" + exampleUUID, strings.ReplaceAll(exampleUUID, "-", ""),
		exampleUUID + "0", exampleUUID[1:], uuid.Nil.String(), "",
	} {
		p := parse("U="+text, 0)
		if p.requiredUUID("U"); !strings.Contains(refused(p), "parameter U") {
			t.Errorf("%q is taken: %v", text, p.err)
		}
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint64{
		"0": 0, "1": 1 << 30, "20480": 20480 << 30, "17179869183": 17179869183 << 30,
		"17179869184": math.MaxUint64, "18446744073709551615": math.MaxUint64,
	} {
		p := parse("Size="+text, 0)
		if got := p.gib("Size"); got != want || p.err != nil {
			t.Errorf("%s GiB are %d bytes, %v", text, got, p.err)
		}
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]fsm.Page{
		"":                 {Limit: 10},
		"Limit=&Offset=":   {Limit: 10},
		"Limit=0&Offset=0": {},
		"Limit=3&Offset=4": {Limit: 3, Offset: 4},
		"Limit=1&Limit=2":  {Limit: 2},
		"Offset=1&Offset=": {Limit: 10},
		"Limit=9223372036854775808&Offset=18446744073709551615": {Limit: math.MaxInt, Offset: math.MaxInt},
	} {
		p := parse(query, 0)
		if got := p.page(); got != want || p.err != nil {
			t.Errorf("%q is %+v, %v", query, got, p.err)
		}
	}
}

// The first thing that is wrong is told.
func TestFirstErrorCounts(t *testing.T) {
	t.Parallel()
	p := parse("B=x", 0)
	p.required("A")
	p.number("B", 1, 0)
	if !strings.Contains(refused(p), "parameter A") {
		t.Error(refused(p))
	}
}

// What a client escapes, the server reads as it was.
func TestValuesSurviveTheWay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.MapOfN(rapid.StringMatching(`[A-Za-z%&=+ ]{1,5}`), rapid.String(), 0, 5).Draw(t, "values")
		var query []string
		for name, value := range values {
			query = append(query, percent(name)+"="+percent(value))
		}
		p := parse(strings.Join(query, "&"), 0)
		for name, value := range values {
			if alias, ok := aliases[name]; ok {
				name = alias
			}
			if got := p.optional(name); got != value || p.err != nil {
				t.Fatalf("%q is %q, want %q, %v", name, got, value, p.err)
			}
		}
	})
}

// percent escapes every byte.
func percent(s string) string {
	const hex = "0123456789abcdef"
	var out strings.Builder
	for i := range len(s) {
		out.Write([]byte{'%', hex[s[i]>>4], hex[s[i]&15]})
	}
	return out.String()
}

// FuzzQuery holds the parser against any query: it refuses it as malformed, in
// words that can be read, or every value that is taken from it is what it
// promises to be.
func FuzzQuery(f *testing.F) {
	for name := range actions {
		f.Add("Action=" + name + "&Version=1.5&User=ann&File=/v&Name=s&Destination=/w&Size=1&Lazy=true&Source=" + exampleUUID + "&UUID=" + exampleUUID)
	}
	f.Add("Action=ListFile&Version=1&User=%ff&Dir=/+%2b&Limit=-1&Limit=18446744073709551616&&=&%zz=1&File")
	f.Fuzz(func(t *testing.T, query string) {
		do, err := decode(query, time.UnixMicro(1))
		if (do == nil) == (err == nil) {
			t.Fatalf("decoded to %v, %v", do != nil, err)
		}
		if err != nil {
			e := err.(*client.Error)
			if e.Code != client.BadRequest || e.Detail == "" || !utf8.ValidString(e.Detail) || len(e.Detail) > 1<<10 {
				t.Fatalf("refused with %d, %q", e.Code, e.Detail)
			}
		}
		p := parse(query, 1)
		for name := range p.raw {
			got := p.optional(name)
			want, err := url.PathUnescape(p.raw[name])
			if taken := err == nil && utf8.ValidString(want); taken && got != want || !taken && got != "" {
				t.Fatalf("%q is %q, want %q, %v", name, got, want, err)
			}
		}
		if len(query) > maxQuery && err == nil {
			t.Fatal("a query that is too long is taken")
		}
	})
}
