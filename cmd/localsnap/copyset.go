package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

type copysetCmd struct {
	access `embed:""`

	List   copysetList   `cmd:"" help:"List who keeps which copies."`
	Verify copysetVerify `cmd:"" help:"Compare the copies of all data with one another."`
}

type copysetList struct{}

func (*copysetList) Help() string {
	return "The primary, marked with *, is the member that is read and written. For example:\n\n  localsnap copyset list"
}

func (c *copysetList) Run(ctx context.Context, a *access) error {
	reply, err := get(ctx, a, a.api.ListCopysets, client.ListCopysetsRequest{})
	if err != nil {
		return err
	}
	return a.show(reply.Copysets, func(w io.Writer) error { return printCopysets(w, reply.Copysets) })
}

type copysetVerify struct{}

func (*copysetVerify) Help() string {
	return `Chunkservers sum up what their disks should hold; what the disks do hold, localsnap store verify reads. Copies that are written all the
time can't be compared. Exit code 1 unless all copies are identical. For example:

  localsnap copyset verify`
}

// errNotIdentical: not all copies were found to be equal.
var errNotIdentical = errors.New("not all copies are identical")

func (c *copysetVerify) Run(ctx context.Context, a *access) error {
	reply, err := get(ctx, a, a.api.ListCopysets, client.ListCopysetsRequest{Verify: true})
	if err != nil {
		return err
	}
	var failing []client.Copyset
	degraded := 0
	for _, set := range reply.Copysets {
		if set.Copies != client.CopiesIdentical {
			failing = append(failing, set)
		}
		for _, m := range set.Members {
			if m.State != client.MemberInSync {
				degraded++
				break
			}
		}
	}
	err = a.show(reply.Copysets, func(w io.Writer) error {
		fmt.Fprintf(w, "%d of %d copysets: all copies in sync are identical\n", len(reply.Copysets)-len(failing), len(reply.Copysets))
		if degraded > 0 {
			fmt.Fprintf(w, "%d copysets have members that are not in sync\n", degraded)
		}
		if len(failing) == 0 {
			return nil
		}
		return printCopysets(w, failing)
	})
	if err == nil && len(failing) > 0 {
		err = fmt.Errorf("%w: %d of %d copysets", errNotIdentical, len(failing), len(reply.Copysets))
	}
	return err
}

func printCopysets(w io.Writer, sets []client.Copyset) error {
	return table(w, "COPYSET\tEPOCH\tCHUNKSERVERS\tCOPIES", len(sets), func(i int) string {
		s := sets[i]
		return fmt.Sprintf("%d\t%d\t%s\t%s", s.ID, s.Epoch, membersText(s), copiesText(s.Copies))
	})
}

// membersText names the members of a copyset, and how they are unless that is
// in sync.
func membersText(s client.Copyset) string {
	var members []string
	for _, m := range s.Members {
		text := fmt.Sprint(m.Chunkserver)
		if m.Chunkserver == s.Primary {
			text += "*"
		}
		switch m.State {
		case client.MemberSyncing:
			text += " (syncing)"
		case client.MemberOut:
			text += " (out)"
		}
		members = append(members, text)
	}
	return strings.Join(members, ", ")
}

func copiesText(c client.Copies) string {
	switch c {
	case client.CopiesIdentical:
		return "identical"
	case client.CopiesDiffer:
		return "DIFFER"
	case client.CopiesBusy:
		return "being written"
	case client.CopiesMissing:
		return "a chunkserver did not answer"
	}
	return "-"
}

type chunkserverList struct {
	access `embed:""`
}

func (*chunkserverList) Help() string { return "For example:\n\n  localsnap chunkserver list" }

func (c *chunkserverList) Run(ctx context.Context, a *access) error {
	reply, err := get(ctx, a, a.api.ListChunkservers, client.ListChunkserversRequest{})
	if err != nil {
		return err
	}
	return a.show(reply.Chunkservers, func(w io.Writer) error {
		return table(w, "ID\tADDRESS\tSTATE\tSEEN\tCOPYSETS\tPRIMARIES\tUSED\tFREE", len(reply.Chunkservers), func(i int) string {
			s := reply.Chunkservers[i]
			state, seen, used, free := "away", "-", "-", "-"
			if s.Connected {
				state, seen = "connected", (time.Duration(s.Silent)*time.Microsecond).Round(time.Millisecond).String()+" ago"
				used, free = aboutText(s.Used), aboutText(s.Free)
			}
			if s.Draining {
				state += ", draining"
			}
			return fmt.Sprintf("%d\t%s\t%s\t%s\t%d\t%d\t%s\t%s", s.ID, s.Address, state, seen, s.Copysets, s.Primaries, used, free)
		})
	})
}

type chunkserverDrain struct {
	access `embed:""`

	ID     uint64 `arg:"" help:"The number of the chunkserver in localsnap chunkserver list."`
	Cancel bool   `help:"Stop moving: the chunkserver stays."`
}

func (*chunkserverDrain) Help() string {
	return `Every copyset of the chunkserver gets another member first, which is brought up to date; then the chunkserver leaves it. So there must
be a fourth one. I/O goes on. It is done when localsnap chunkserver list shows 0 copysets. For example:

  localsnap chunkserver drain 2`
}

func (c *chunkserverDrain) Run(ctx context.Context, a *access) error {
	err := tell(ctx, a, a.api.DrainChunkserver, client.DrainChunkserverRequest{ID: c.ID, Cancel: c.Cancel})
	if err != nil {
		return err
	}
	if c.Cancel {
		return a.say(struct{ ID uint64 }{c.ID}, "chunkserver %d stays", c.ID)
	}
	return a.say(struct{ ID uint64 }{c.ID}, "the copies of chunkserver %d are being moved; localsnap chunkserver list shows how many are left", c.ID)
}

type chunkserverRemove struct {
	access `embed:""`

	ID uint64 `arg:"" help:"The number of the chunkserver in localsnap chunkserver list."`
}

func (*chunkserverRemove) Help() string {
	return `A directory whose chunkserver was removed must not be used again. For example:

  localsnap chunkserver remove 2`
}

func (c *chunkserverRemove) Run(ctx context.Context, a *access) error {
	if err := tell(ctx, a, a.api.RemoveChunkserver, client.RemoveChunkserverRequest{ID: c.ID}); err != nil {
		return err
	}
	return a.say(struct{ ID uint64 }{c.ID}, "chunkserver %d is forgotten", c.ID)
}
