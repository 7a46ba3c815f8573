// Package client is the HTTP interface of localsnap as Go: its requests,
// replies and codes as types, and a client.
//
//	c := client.New("10.0.0.1:5555", "10.0.0.2:5555", "10.0.0.3:5555")
//	err := c.CreateFile(ctx, client.CreateFileRequest{User: "ann", File: "/v", Size: 10})
//	var refused *client.Error
//	if errors.As(err, &refused) && refused.Code == client.Exists { ...
//
// Any server can be asked anything: those that don't lead pass requests on.
// The package imports nothing of ours, so that any program can use it.
//
// # Retries
//
// A request that got no answer, or the answer that its server is stopping or
// reaches no leader (code -4), is sent to the next server, with growing pauses,
// until there is an answer or the context ends. That is safe, as all requests
// can be repeated: one that has taken effect is answered alike again. The one
// exception is CleanCloneTask, which then finds nothing to clean and fails with
// NotExist. A context without an end means to wait as long as it takes.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

const (
	path = "/SnapshotCloneService"

	// dialTimeout is after how long the next server is tried instead of one
	// that is down.
	dialTimeout = 2 * time.Second
	// tryTimeout is more than a server takes for any reply.
	tryTimeout = 15 * time.Second
	// minPause and maxPause bound the pause after all servers were tried.
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
	// maxReply bounds the memory that a server's reply can take.
	maxReply = 256 << 20
)

// Client asks the servers of one cluster. Its methods are the actions of the
// service and may be called concurrently. They return an [*Error] for what the
// service refused.
type Client struct {
	// HTTP sends the requests, over connections that it keeps open. It may be
	// replaced before the first.
	HTTP *http.Client

	servers []string      // base URLs
	current atomic.Uint64 // the server that is asked first, modulo their number
}

// New returns a client of a cluster's servers, each given as host:port or as a
// URL. It asks the first until that fails.
func New(servers ...string) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	c := &Client{HTTP: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, s := range servers {
		if !strings.Contains(s, "://") {
			s = "http://" + s
		}
		c.servers = append(c.servers, strings.TrimSuffix(s, "/"))
	}
	return c
}

// CreateFile makes a volume.
func (c *Client) CreateFile(ctx context.Context, r CreateFileRequest) error {
	return c.do(ctx, "CreateFile", r, new(Reply))
}

// CreateDir makes a directory.
func (c *Client) CreateDir(ctx context.Context, r CreateDirRequest) error {
	return c.do(ctx, "CreateDir", r, new(Reply))
}

// DeleteFile deletes a volume or an empty directory.
func (c *Client) DeleteFile(ctx context.Context, r DeleteFileRequest) error {
	return c.do(ctx, "DeleteFile", r, new(Reply))
}

// ListFile returns a volume, or the entries of a directory.
func (c *Client) ListFile(ctx context.Context, r ListFileRequest) (FilesReply, error) {
	return get[FilesReply](ctx, c, "ListFile", r)
}

// Rename gives a volume another path.
func (c *Client) Rename(ctx context.Context, r RenameRequest) error {
	return c.do(ctx, "Rename", r, new(Reply))
}

// Extend makes a volume larger.
func (c *Client) Extend(ctx context.Context, r ExtendRequest) error {
	return c.do(ctx, "Extend", r, new(Reply))
}

// RestoreFile takes a deleted volume back.
func (c *Client) RestoreFile(ctx context.Context, r RestoreFileRequest) error {
	return c.do(ctx, "RestoreFile", r, new(Reply))
}

// Children returns the clones that depend on a volume or snapshot.
func (c *Client) Children(ctx context.Context, r ChildrenRequest) (FilesReply, error) {
	return get[FilesReply](ctx, c, "Children", r)
}

// CreateSnapshot takes a snapshot and returns its UUID.
func (c *Client) CreateSnapshot(ctx context.Context, r CreateSnapshotRequest) (string, error) {
	reply, err := get[UUIDReply](ctx, c, "CreateSnapshot", r)
	return reply.UUID, err
}

// DeleteSnapshot deletes a snapshot.
func (c *Client) DeleteSnapshot(ctx context.Context, r DeleteSnapshotRequest) error {
	return c.do(ctx, "DeleteSnapshot", r, new(Reply))
}

// CancelSnapshot cancels a snapshot that is not finished.
func (c *Client) CancelSnapshot(ctx context.Context, r CancelSnapshotRequest) error {
	return c.do(ctx, "CancelSnapshot", r, new(Reply))
}

// GetFileSnapshotInfo returns snapshots of the user.
func (c *Client) GetFileSnapshotInfo(ctx context.Context, r SnapshotInfoRequest) (SnapshotsReply, error) {
	return get[SnapshotsReply](ctx, c, "GetFileSnapshotInfo", r)
}

// GetFileSnapshotList returns snapshots of all users.
func (c *Client) GetFileSnapshotList(ctx context.Context, r SnapshotListRequest) (SnapshotsReply, error) {
	return get[SnapshotsReply](ctx, c, "GetFileSnapshotList", r)
}

// Clone makes a volume of a snapshot or volume and returns its task's UUID.
func (c *Client) Clone(ctx context.Context, r CloneRequest) (string, error) {
	reply, err := get[UUIDReply](ctx, c, "Clone", r)
	return reply.UUID, err
}

// Recover makes a volume's content that of a snapshot and returns the UUID of
// its task.
func (c *Client) Recover(ctx context.Context, r RecoverRequest) (string, error) {
	reply, err := get[UUIDReply](ctx, c, "Recover", r)
	return reply.UUID, err
}

// Flatten begins to make a clone independent of what it was cloned from.
func (c *Client) Flatten(ctx context.Context, r FlattenRequest) error {
	return c.do(ctx, "Flatten", r, new(Reply))
}

// GetCloneTasks returns tasks of the user.
func (c *Client) GetCloneTasks(ctx context.Context, r CloneTasksRequest) (TasksReply, error) {
	return get[TasksReply](ctx, c, "GetCloneTasks", r)
}

// GetCloneTaskList returns tasks of all users.
func (c *Client) GetCloneTaskList(ctx context.Context, r CloneTaskListRequest) (TasksReply, error) {
	return get[TasksReply](ctx, c, "GetCloneTaskList", r)
}

// CleanCloneTask removes the record of a finished task.
func (c *Client) CleanCloneTask(ctx context.Context, r CleanCloneTaskRequest) error {
	return c.do(ctx, "CleanCloneTask", r, new(Reply))
}

// GetCloneRefStatus tells whether clones depend on a volume.
func (c *Client) GetCloneRefStatus(ctx context.Context, r CloneRefStatusRequest) (RefStatusReply, error) {
	return get[RefStatusReply](ctx, c, "GetCloneRefStatus", r)
}

// headed is a reply of any kind.
type headed interface{ Head() *Reply }

// get is do for a reply that says more than that it was done.
func get[R any, P interface {
	*R
	headed
}](ctx context.Context, c *Client, action string, request any) (reply R, err error) {
	err = c.do(ctx, action, request, P(&reply))
	return reply, err
}

// do sends a request until a server answers it.
func (c *Client) do(ctx context.Context, action string, request any, reply headed) error {
	if len(c.servers) == 0 {
		return fmt.Errorf("%s: no server is known", action)
	}
	query, id := encode(action, request), uuid.NewString()
	pause := minPause
	for tries := 1; ; tries++ {
		current := c.current.Load()
		err := c.try(ctx, c.servers[current%uint64(len(c.servers))], query, id, reply)
		var again *retryable
		if !errors.As(err, &again) {
			if err != nil {
				return fmt.Errorf("%s: %w", action, err)
			}
			return nil
		}
		c.current.CompareAndSwap(current, current+1)
		if tries%len(c.servers) == 0 {
			sleep(ctx, pause/2+rand.N(pause/2))
			pause = min(2*pause, maxPause)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w; last try: %w", action, context.Cause(ctx), again.err)
		}
	}
}

// retryable is a failure that another server, or a later try, may not have.
type retryable struct{ err error }

func (e *retryable) Error() string { return e.err.Error() }

// try sends a request to one server.
func (c *Client) try(ctx context.Context, server, query, id string, reply headed) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server+path+"?"+query, nil)
	if err != nil {
		return err
	}
	r.Header.Set("X-Request-Id", id)
	response, err := c.HTTP.Do(r)
	if err != nil {
		return &retryable{err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxReply))
	if err != nil {
		return &retryable{fmt.Errorf("reply of %s: %w", server, err)}
	}
	return parse(server, response.StatusCode, body, reply)
}

// parse fills in a reply and returns the refusal that it is, if it is one.
func parse(server string, status int, body []byte, reply headed) error {
	head := reply.Head()
	*head = Reply{}
	if err := json.Unmarshal(body, reply); err != nil || head.Message == "" {
		err := fmt.Errorf("%s is no server of this service: HTTP status %d", server, status)
		if status >= http.StatusInternalServerError { // a load balancer, perhaps
			return &retryable{err}
		}
		return err
	}
	if head.Code == OK {
		return nil
	}
	refused := &Error{head.Code, head.Message, head.Detail, head.RequestID}
	if head.Code == Stopped {
		return &retryable{refused}
	}
	return refused
}

// sleep returns after a while, or when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
