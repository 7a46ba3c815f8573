package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	// waitPoll is the pause between two looks at something that goes on in
	// the background.
	waitPoll = 100 * time.Millisecond
	// waitLine is the pause between two lines about it where no terminal
	// could show a bar.
	waitLine = 5 * time.Second
	barWidth = 30
)

// waiting is the flag of commands that begin something.
type waiting struct {
	Wait bool `short:"w" help:"Return when it is finished, and show its progress meanwhile."`
}

// follow looks at something that goes on in the background, with its progress
// on stderr, until it is done. An interruption only ends the looking, which is
// then said together with how to look again.
func (a *access) follow(ctx context.Context, what, again string, look func(context.Context) (percent int, done bool, err error)) error {
	bar := progress{w: a.err, what: what, terminal: isTerminal(a.err)}
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	for {
		percent, done, err := look(ctx)
		if err != nil && ctx.Err() == nil {
			bar.end()
			return err
		}
		if err == nil {
			bar.at(percent, done)
		}
		if done {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			bar.end()
			return fmt.Errorf("%s goes on without you; look at it with: localsnap %s", what, again)
		}
	}
}

// progress is a bar on a terminal, or a line now and then elsewhere.
type progress struct {
	w        io.Writer
	what     string
	terminal bool
	shown    bool // the bar stands in the present line
	next     time.Time
}

func (p *progress) at(percent int, done bool) {
	percent = min(max(percent, 0), 100)
	if p.terminal {
		full := barWidth * percent / 100
		fmt.Fprintf(p.w, "\r%s [%s%s] %3d%%", p.what, strings.Repeat("#", full), strings.Repeat(".", barWidth-full), percent)
		p.shown = true
		if done {
			p.end()
		}
		return
	}
	if now := time.Now(); done || !now.Before(p.next) {
		fmt.Fprintf(p.w, "%s: %d%%\n", p.what, percent)
		p.next = now.Add(waitLine)
	}
}

// end begins a new line for what comes.
func (p *progress) end() {
	if p.shown {
		fmt.Fprintln(p.w)
		p.shown = false
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
