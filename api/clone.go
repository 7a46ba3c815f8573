package api

import (
	"strings"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/fsm"
)

// clone goes by File and Name, which makes a lazy clone, or else by Source.
func clone(p *params) operation {
	c := fsm.Clone{
		User: p.required("User"), Time: p.now, Destination: p.required("Destination"), Pool: p.filled("Poolset"),
		UUID: uuid.New(), Hidden: uuid.New(),
	}
	if bySource(p) {
		c.Snapshot, c.Path = source(p)
		p.required("Lazy")
		c.Lazy = p.flag("Lazy")
	} else {
		c.Path, c.Name = p.required("File"), p.required("Name")
		c.Lazy, c.ReadOnly = true, p.flag("Readonly")
	}
	return change(c, renderTaskUUID)
}

// bySource reports whether a snapshot is named by Source rather than by File
// and Name.
func bySource(p *params) bool {
	return p.has("Source") && !(p.has("File") && p.has("Name"))
}

// source returns what Source names: a snapshot or the path of a volume.
func source(p *params) (snapshot uuid.UUID, path string) {
	text := p.optional("Source")
	if strings.HasPrefix(text, "/") {
		return uuid.Nil, text
	}
	snapshot, ok := parseUUID(text)
	if !ok {
		p.fail("parameter Source: %.64q is neither the UUID of a snapshot nor the absolute path of a volume", text)
	}
	return snapshot, ""
}

// flatten goes by File, or else by the UUID of a task.
func flatten(p *params) operation {
	c := fsm.Flatten{User: p.required("User"), Path: p.optional("File")}
	if c.Path == "" {
		if !p.has("UUID") {
			p.fail("one of the parameters File and UUID is required and must not be empty")
		}
		c.UUID = p.uuid("UUID")
	}
	return just(c)
}

func children(p *params) operation {
	user, file, name := p.required("User"), p.required("File"), p.optional("Name")
	return query(func(s *fsm.State) (reply, error) {
		clones, err := s.Children(user, file, name)
		return renderVolumes(clones), err
	})
}

// getCloneRefStatus never leaves anything to be checked: a clone that is gone
// depends on nothing.
func getCloneRefStatus(p *params) operation {
	user, path := p.required("User"), p.required("Source")
	return query(func(s *fsm.State) (reply, error) {
		clones, err := s.Children(user, path, "")
		status := client.Unreferenced
		if len(clones) > 0 {
			status = client.Referenced
		}
		return &client.RefStatusReply{RefStatus: status, CloneFileInfo: []client.CloneFile{}}, err
	})
}
