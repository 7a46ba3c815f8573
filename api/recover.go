package api

import (
	"github.com/google/uuid"
	"github.com/localsnap/localsnap/fsm"
)

// recoverVolume goes by File and Name, or else by Source and Destination.
func recoverVolume(p *params) operation {
	c := fsm.Recover{User: p.required("User"), Time: p.now, UUID: uuid.New()}
	if bySource(p) {
		c.Snapshot, c.Destination = p.uuid("Source"), p.required("Destination")
		p.required("Lazy")
		c.Lazy = p.flag("Lazy")
	} else {
		c.Path, c.Name = p.required("File"), p.required("Name")
	}
	return change(c, renderTaskUUID)
}
