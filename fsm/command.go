package fsm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
)

// Command is a change of the state. It carries everything that it depends on
// besides the state: ids, times and randomness are chosen by who proposes it.
type Command interface {
	// apply does it, or refuses with an *Error before anything is changed.
	apply(s *State) (any, error)
}

// commands tells which command a type byte stands for. Both numbers are part
// of the log's format: a type byte is never given to another command, and a
// change of a command's fields raises its version.
var commands = [...]struct {
	version byte
	command Command
}{
	1:  {1, InitCluster{}},
	2:  {1, CreateVolume{}},
	3:  {1, CreateDir{}},
	4:  {1, Delete{}},
	5:  {1, RestoreFile{}},
	6:  {1, Rename{}},
	7:  {1, Extend{}},
	8:  {1, CreateSnapshot{}},
	9:  {1, DeleteSnapshot{}},
	10: {1, Clone{}},
	11: {1, Flatten{}},
	12: {1, Recover{}},
	13: {1, CleanTask{}},
	14: {1, Attach{}},
	15: {1, Detach{}},
	16: {1, Resume{}},
	17: {1, RegisterNode{}},
	18: {1, CreatePool{}},
	19: {1, Reconfigure{}},
	20: {1, FlattenProgress{}},
	21: {1, FlattenDone{}},
	22: {1, PurgeProgress{}},
	23: {1, PurgeDone{}},
	24: {1, ExpireTrash{}},
	25: {1, Sweep{}},
	26: {1, DrainNode{}},
	27: {1, RemoveNode{}},
}

// types is the inverse of commands.
var types = func() map[reflect.Type]byte {
	types := make(map[reflect.Type]byte)
	for i := 1; i < len(commands); i++ {
		types[reflect.TypeOf(commands[i].command)] = byte(i)
	}
	return types
}()

// Encode returns the form of a command (a struct, not a pointer to it) that
// goes into the log:
//
//	u8 type | u8 version | body: JSON
func Encode(c Command) []byte {
	kind, ok := types[reflect.TypeOf(c)]
	if !ok {
		panic(fmt.Sprintf("fsm: %T is not in the table of commands", c))
	}
	body, err := json.Marshal(c)
	if err != nil {
		panic(fmt.Sprintf("fsm: encode %T: %v", c, err)) // plain values only: can't fail
	}
	return append([]byte{kind, commands[kind].version}, body...)
}

// decode is the inverse of Encode. It takes nothing that it doesn't wholly
// understand.
func decode(data []byte) (Command, error) {
	const header = 2
	if len(data) < header {
		return nil, fmt.Errorf("command of %d bytes", len(data))
	}
	kind, version := int(data[0]), data[1]
	if kind == 0 || kind >= len(commands) {
		return nil, fmt.Errorf("unknown command type %d: the log was written by a newer version", kind)
	}
	row := commands[kind]
	if version != row.version {
		return nil, fmt.Errorf("%T of version %d, this server knows version %d", row.command, version, row.version)
	}
	d := json.NewDecoder(bytes.NewReader(data[header:]))
	d.DisallowUnknownFields()
	c := reflect.New(reflect.TypeOf(row.command))
	if err := d.Decode(c.Interface()); err != nil {
		return nil, fmt.Errorf("decode %T: %w", row.command, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("decode %T: something follows it", row.command)
	}
	return c.Elem().Interface().(Command), nil
}
