package nemesis

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// A process is one role of localsnap on a host of its own.
type process struct {
	*host
	t    *testing.T
	args []string
	dir  string
	log  string

	cmd  *exec.Cmd
	dead chan struct{} // closed when the process has ended
}

// start starts the process, which must not run.
func (p *process) start() {
	p.t.Helper()
	cmd, err := p.command(os.Getenv(binaryVariable), p.args...)
	must(p.t, err)
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(p.t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	must(p.t, cmd.Start())
	dead := make(chan struct{})
	p.cmd, p.dead = cmd, dead
	go func() {
		cmd.Wait()
		close(dead)
	}()
}

// runs reports whether the process has not ended.
func (p *process) runs() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.dead:
		return false
	default:
		return true
	}
}

// kill ends the process as a power failure would, and waits for that.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Kill() // fails only if it has ended
	<-p.dead
}

// restart is what an administrator would do: end the process in order, and
// start it again.
func (p *process) restart() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	await(p.t, toolLimit, p.name+" to end", func() bool { return !p.runs() })
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("%s ended with %d\n%s", p.name, code, p.tail())
	}
	p.start()
}

// signal sends a signal: SIGSTOP makes the process stand still, with all its
// connections open, until SIGCONT.
func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("%v to %s: %v", s, p.name, err)
	}
}

// tail is the end of what the process has printed.
func (p *process) tail() string {
	const most = 3 << 10
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}
