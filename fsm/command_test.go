package fsm

import (
	"bytes"
	"testing"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// What the log holds must be understood for ever: these are entries as version
// 1 wrote them.
func TestLogFormat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		command Command
		want    string
	}{
		{CreateVolume{User: "ann", Time: 1, Path: "/a", Size: 2, Layout: chunk.Layout{Unit: 3, Count: 4}, Pool: "p"},
			"\x02\x01" + `{"User":"ann","Time":1,"Path":"/a","Size":2,"Layout":{"Unit":3,"Count":4},"Pool":"p"}`},
		{DeleteSnapshot{User: "ann", UUID: id(1), Path: "/a", Name: "s"},
			"\x09\x01" + `{"User":"ann","UUID":"00000000-0000-0000-0000-000000000001","Path":"/a","Name":"s"}`},
		{Reconfigure{Pool: "p", Copysets: []chunk.Copyset{set(1, 2)}},
			"\x13\x01" + `{"Pool":"p","Copysets":[{"ID":1,"Epoch":2,"Primary":1,"Members":[{"Node":1,"Incarnation":1,"State":1},{"Node":2,"Incarnation":2,"State":1}]}]}`},
		{PurgeDone{Volume: 3, Garbage: 4, Snapshots: []uuid.UUID{id(5)}},
			"\x17\x01" + `{"Volume":3,"Garbage":4,"Snapshots":["00000000-0000-0000-0000-000000000005"]}`},
		{ExpireTrash{Before: 1 << 63}, "\x18\x01" + `{"Before":9223372036854775808}`},
	} {
		if got := string(Encode(c.command)); got != c.want {
			t.Errorf("%T is encoded as\n%q, want\n%q", c.command, got, c.want)
		}
	}
}

func TestEncodeRefusesForeignCommands(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("a command that is not in the table was encoded")
		}
	}()
	Encode(&CreateDir{})
}

// Whatever bytes come: they are refused, or are a command that is encoded and
// decoded to the same bytes.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 1, '{', '}'})
	for _, row := range commands[1:] {
		f.Add(Encode(row.command))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decode(data)
		if err != nil {
			return
		}
		once := Encode(c)
		again, err := decode(once)
		if err != nil || !bytes.Equal(Encode(again), once) {
			t.Fatalf("%q became %q, then %#v, %v", data, once, again, err)
		}
	})
}
