package api

import (
	"fmt"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/fsm"
)

// getCloneTasks goes by UUID, or else by File, or else by User.
func getCloneTasks(p *params) operation {
	user, id, file, page := p.required("User"), p.uuid("UUID"), p.optional("File"), p.page()
	return query(func(s *fsm.State) (reply, error) {
		switch {
		case id != uuid.Nil:
			t, err := s.Task(user, id)
			return renderTasks(cut([]fsm.Task{t}, page), 1), err
		case file != "":
			return tasksOf(s, user, file, page)
		}
		return listTasks(s, fsm.TaskFilter{User: user}, page)
	})
}

// tasksOf returns the user's tasks of a volume, which may be gone.
func tasksOf(s *fsm.State, user, file string, page fsm.Page) (reply, error) {
	filter := fsm.TaskFilter{User: user, Destination: file}
	if user == fsm.Root {
		filter.User = ""
	}
	tasks, total, err := s.Tasks(filter, page)
	if err != nil || total > 0 {
		return renderTasks(tasks, total), err
	}
	if _, err := s.File(user, file); err != nil {
		return nil, err
	}
	return nil, &fsm.Error{Kind: fsm.NotExist, Detail: fmt.Sprintf("%s has no task of %s", file, user)}
}

func getCloneTaskList(p *params) operation {
	filter := fsm.TaskFilter{
		User:        p.optional("User"),
		UUID:        p.uuid("UUID"),
		Source:      p.optional("Source"),
		Destination: p.optional("Destination"),
		Status:      choice(p, "Status", fsm.TaskStatus(client.TaskMetaInstalled)),
		Type:        choice(p, "Type", fsm.TaskType(client.TaskRecover)),
	}
	page := p.page()
	return query(func(s *fsm.State) (reply, error) {
		return listTasks(s, filter, page)
	})
}

func cleanCloneTask(p *params) operation {
	return just(fsm.CleanTask{User: p.required("User"), UUID: p.requiredUUID("UUID")})
}

func renderTaskUUID(t fsm.Task) reply { return &client.UUIDReply{UUID: t.UUID.String()} }

func listTasks(s *fsm.State, f fsm.TaskFilter, p fsm.Page) (reply, error) {
	tasks, total, err := s.Tasks(f, p)
	return renderTasks(tasks, total), err
}

func renderTasks(tasks []fsm.Task, total int) reply {
	infos := make([]client.TaskInfo, len(tasks))
	for i, t := range tasks {
		infos[i] = client.TaskInfo{
			UUID:       t.UUID.String(),
			User:       t.User,
			File:       t.Destination,
			Src:        t.Source,
			TaskType:   client.TaskType(t.Type),
			TaskStatus: client.TaskStatus(t.Status),
			Time:       t.Time,
			IsLazy:     t.Lazy,
			FileType:   client.FromVolume,
			Progress:   t.Progress,
		}
		if t.FromSnapshot {
			infos[i].FileType = client.FromSnapshot
		}
	}
	return &client.TasksReply{TotalCount: total, TaskInfos: infos}
}
