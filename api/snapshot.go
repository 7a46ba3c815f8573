package api

import (
	"github.com/google/uuid"
	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/fsm"
)

func createSnapshot(p *params) operation {
	return change(fsm.CreateSnapshot{
		User: p.required("User"), Time: p.now, Path: p.required("File"), Name: p.required("Name"), UUID: uuid.New(),
	}, func(n fsm.Snapshot) reply {
		return &client.UUIDReply{UUID: n.UUID.String()}
	})
}

// deleteSnapshot goes by File and Name, or else by UUID.
func deleteSnapshot(p *params) operation {
	c := fsm.DeleteSnapshot{User: p.required("User"), Path: p.optional("File"), Name: p.optional("Name")}
	switch {
	case c.Name != "":
		p.required("File")
	case p.has("UUID"):
		c.UUID = p.uuid("UUID")
	default:
		p.fail("one of the parameters Name and UUID is required and must not be empty")
	}
	return just(c)
}

func cancelSnapshot(p *params) operation {
	user, file, id := p.required("User"), p.required("File"), p.requiredUUID("UUID")
	return query(func(s *fsm.State) (reply, error) {
		return &client.Reply{}, s.CancelSnapshot(user, file, id)
	})
}

// getFileSnapshotInfo goes by UUID, or else by File and Name, or else by File,
// or else by User.
func getFileSnapshotInfo(p *params) operation {
	user, id, file, name, page := p.required("User"), p.uuid("UUID"), p.optional("File"), p.optional("Name"), p.page()
	if id == uuid.Nil && name != "" {
		p.required("File")
	}
	return query(func(s *fsm.State) (reply, error) {
		switch {
		case id != uuid.Nil:
			n, err := s.SnapshotByUUID(user, id, file)
			return renderSnapshots(cut([]fsm.Snapshot{n}, page), 1), err
		case name != "":
			n, err := s.Snapshot(user, file, name)
			return renderSnapshots(cut([]fsm.Snapshot{n}, page), 1), err
		case file != "":
			if _, err := s.Volume(user, file); err != nil {
				return nil, err
			}
			return listSnapshots(s, fsm.SnapshotFilter{Path: file}, page)
		}
		return listSnapshots(s, fsm.SnapshotFilter{User: user}, page)
	})
}

func getFileSnapshotList(p *params) operation {
	filter := fsm.SnapshotFilter{
		User:   p.optional("User"),
		UUID:   p.uuid("UUID"),
		Path:   p.optional("File"),
		Status: choice(p, "Status", fsm.SnapshotStatus(client.SnapshotError)),
	}
	page := p.page()
	return query(func(s *fsm.State) (reply, error) {
		return listSnapshots(s, filter, page)
	})
}

func listSnapshots(s *fsm.State, f fsm.SnapshotFilter, p fsm.Page) (reply, error) {
	snapshots, total, err := s.Snapshots(f, p)
	return renderSnapshots(snapshots, total), err
}

func renderSnapshots(snapshots []fsm.Snapshot, total int) reply {
	infos := make([]client.Snapshot, len(snapshots))
	for i, n := range snapshots {
		infos[i] = client.Snapshot{
			UUID:       n.UUID.String(),
			User:       n.User,
			File:       n.Path,
			SeqNum:     uint64(n.Seq),
			Name:       n.Name,
			Time:       n.Time,
			FileLength: n.Size,
			Status:     client.SnapshotStatus(n.Status),
			Progress:   n.Progress,
		}
	}
	return &client.SnapshotsReply{TotalCount: total, Snapshots: infos}
}
