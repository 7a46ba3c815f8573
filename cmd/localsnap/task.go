package main

import (
	"context"
	"fmt"
	"io"

	"github.com/localsnap/localsnap/api/client"
)

type taskCmd struct {
	access `embed:""`

	List  taskList  `cmd:"" help:"List clones and rollbacks, done and under way."`
	Show  taskShow  `cmd:"" help:"Show one task."`
	Wait  taskWait  `cmd:"" help:"Wait until a task is done."`
	Clean taskClean `cmd:"" help:"Forget a task that is done. Its volume stays."`
}

type taskList struct {
	Volume string `arg:"" optional:"" help:"Only those that made or rolled back this volume."`
	All    bool   `help:"Those of all users."`
	window
}

func (*taskList) Help() string { return "For example:\n\n  localsnap task list /copy" }

func (c *taskList) Run(ctx context.Context, a *access) error {
	list, err := collect(c.window, func(p client.Page) ([]client.TaskInfo, error) {
		if c.All {
			reply, err := get(ctx, a, a.api.GetCloneTaskList, client.CloneTaskListRequest{Destination: c.Volume, Page: p})
			return reply.TaskInfos, err
		}
		reply, err := get(ctx, a, a.api.GetCloneTasks, client.CloneTasksRequest{User: a.User, File: c.Volume, Page: p})
		return reply.TaskInfos, err
	})
	if err != nil {
		return advise(err, c.Volume)
	}
	return a.show(list, func(w io.Writer) error { return printTasks(w, list) })
}

// task returns the task with a UUID.
func (a *access) task(ctx context.Context, id string) (client.TaskInfo, error) {
	reply, err := get(ctx, a, a.api.GetCloneTasks, client.CloneTasksRequest{User: a.User, UUID: id})
	if err != nil {
		return client.TaskInfo{}, advise(err, id)
	}
	if len(reply.TaskInfos) != 1 {
		return client.TaskInfo{}, fmt.Errorf("the server lists %d tasks as %s", len(reply.TaskInfos), id)
	}
	return reply.TaskInfos[0], nil
}

// sayTask says what a task has done; its JSON is the task as it is.
func (a *access) sayTask(ctx context.Context, id, format string, args ...any) error {
	var t client.TaskInfo
	if a.JSON {
		var err error
		if t, err = a.task(ctx, id); err != nil {
			return err
		}
	}
	return a.say(t, format, args...)
}

type taskShow struct {
	UUID taskID `arg:""`
}

func (*taskShow) Help() string {
	return "For example:\n\n  localsnap task show 0f0f6b0e-2f4c-4a39-9d0b-53aa5a2d7a11"
}

func (c *taskShow) Run(ctx context.Context, a *access) error {
	t, err := a.task(ctx, string(c.UUID))
	if err != nil {
		return err
	}
	return a.show(t, func(w io.Writer) error { return printTasks(w, []client.TaskInfo{t}) })
}

type taskWait struct {
	UUID taskID `arg:""`
}

func (*taskWait) Help() string {
	return "A clone that nobody flattens is never done: that is an error. For example:\n\n  localsnap task wait 0f0f6b0e-2f4c-4a39-9d0b-53aa5a2d7a11"
}

func (c *taskWait) Run(ctx context.Context, a *access) error {
	var t client.TaskInfo
	id := string(c.UUID)
	err := a.follow(ctx, "task "+id, "task show "+id, func(ctx context.Context) (int, bool, error) {
		var err error
		if t, err = a.task(ctx, id); err != nil {
			return 0, false, err
		}
		switch t.TaskStatus {
		case client.TaskMetaInstalled:
			return 0, false, fmt.Errorf("%s is not being flattened; begin with: localsnap clone flatten %s", t.File, t.File)
		case client.TaskError, client.TaskErrorCleaning:
			return 0, false, fmt.Errorf("task %s has failed", id)
		}
		return t.Progress, t.TaskStatus == client.TaskDone, nil
	})
	if err != nil {
		return err
	}
	return a.say(t, "done: %s", t.File)
}

type taskClean struct {
	UUID taskID `arg:""`
}

func (*taskClean) Help() string {
	return "For example:\n\n  localsnap task clean 0f0f6b0e-2f4c-4a39-9d0b-53aa5a2d7a11"
}

func (c *taskClean) Run(ctx context.Context, a *access) error {
	id := string(c.UUID)
	if err := tell(ctx, a, a.api.CleanCloneTask, client.CleanCloneTaskRequest{User: a.User, UUID: id}); err != nil {
		return advise(err, id)
	}
	return a.say(struct{ UUID string }{id}, "forgot task %s", id)
}
