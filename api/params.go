package api

import (
	"math"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/fsm"
)

// maxQuery bounds a request's query, in bytes.
const maxQuery = 8 << 10

// defaultLimit is how many elements of a list are returned unless more or fewer
// are asked for.
const defaultLimit = 10

// params are the parameters of a request. Taking one that is malformed, or
// required and missing, yields the zero value and is remembered as the error;
// the first counts. A parameter that is given but empty counts as missing.
type params struct {
	now uint64            // when the request came, microseconds since the epoch
	raw map[string]string // values still percent-encoded
	err *client.Error
}

// aliases are other spellings of names.
var aliases = map[string]string{"PoolSet": "Poolset"}

// parse takes a query apart. Of a repeated parameter the last counts. Values
// that nobody takes are not looked at.
func parse(query string, now uint64) *params {
	p := &params{now: now, raw: make(map[string]string)}
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.PathUnescape(name)
		if err != nil {
			continue
		}
		if alias, ok := aliases[name]; ok {
			name = alias
		}
		p.raw[name] = value
	}
	return p
}

func (p *params) fail(format string, args ...any) {
	if p.err == nil {
		p.err = refuse(client.BadRequest, format, args...)
	}
}

// has reports whether a parameter is given and not empty.
func (p *params) has(name string) bool { return p.raw[name] != "" }

// optional returns a parameter, or "" if it is missing.
func (p *params) optional(name string) string {
	value, err := url.PathUnescape(p.raw[name]) // unlike in forms, a plus is a plus
	switch {
	case err != nil:
		p.fail("parameter %s: %v", name, err)
	case !utf8.ValidString(value):
		p.fail("parameter %s: %.64q is not valid UTF-8", name, value)
	default:
		return value
	}
	return ""
}

// required returns a parameter that must be given.
func (p *params) required(name string) string {
	if !p.has(name) {
		p.fail("parameter %s is required and must not be empty", name)
	}
	return p.optional(name)
}

// filled returns a parameter that may be missing but must not be empty.
func (p *params) filled(name string) string {
	if value, given := p.raw[name]; given && value == "" {
		p.fail("parameter %s must not be empty if it is given", name)
	}
	return p.optional(name)
}

// number returns a whole number of at most most, or otherwise if it is missing.
func (p *params) number(name string, most, otherwise uint64) uint64 {
	text := p.optional(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > most {
		p.fail("parameter %s: %.64q is not a whole number from 0 to %d", name, text, most)
	}
	return n
}

// chunkserver returns the required number of a chunkserver.
func (p *params) chunkserver() chunk.NodeID {
	p.required("ID")
	return chunk.NodeID(p.number("ID", math.MaxUint32, 0))
}

// gib returns a required size in bytes, given in GiB. One that is too large for
// 64 bits is the largest that isn't, which no volume can have either.
func (p *params) gib(name string) uint64 {
	const gib = 1 << 30
	p.required(name)
	n := p.number(name, math.MaxUint64, 0)
	if n > math.MaxUint64/gib {
		return math.MaxUint64
	}
	return n * gib
}

// flag returns a bool, or false if it is missing.
func (p *params) flag(name string) bool {
	switch text := p.optional(name); text {
	case "true", "True", "TRUE", "1":
		return true
	case "", "false", "False", "FALSE", "0":
	default:
		p.fail("parameter %s: %.64q is none of true True TRUE 1 false False FALSE 0", name, text)
	}
	return false
}

// uuid returns a UUID, or the nil one if it is missing.
func (p *params) uuid(name string) uuid.UUID {
	text := p.optional(name)
	if text == "" {
		return uuid.Nil
	}
	id, ok := parseUUID(text)
	if !ok {
		p.fail("parameter %s: %.64q is not a UUID like 26ffe85b-55e8-46c4-8823-0104fcf9b362", name, text)
	}
	return id
}

// parseUUID returns the UUID that a text is. The nil one names nothing.
func parseUUID(text string) (id uuid.UUID, ok bool) {
	id, err := uuid.Parse(text)
	return id, err == nil && len(text) == len(id.String()) && id != uuid.Nil
}

// requiredUUID returns a UUID that must be given.
func (p *params) requiredUUID(name string) uuid.UUID {
	p.required(name)
	return p.uuid(name)
}

// page returns which part of a list is wanted.
func (p *params) page() fsm.Page {
	limit := p.number("Limit", math.MaxUint64, defaultLimit)
	offset := p.number("Offset", math.MaxUint64, 0)
	return fsm.Page{Limit: int(min(limit, math.MaxInt)), Offset: int(min(offset, math.MaxInt))}
}

// choice returns the number of one of some alternatives, counted from 0, or nil
// if it is missing.
func choice[T ~uint8](p *params, name string, last T) *T {
	if !p.has(name) {
		return nil
	}
	n := T(p.number(name, uint64(last), 0))
	return &n
}
