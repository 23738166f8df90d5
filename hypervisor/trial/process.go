package trial

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// process is a running QEMU.
type process struct {
	process *os.Process
	ended   chan struct{} // closed when it has
	err     error         // how, then; nil if the guest powered off
}

// start starts QEMU with these files. It is killed by the kernel when this process ends.
func (o Options) start(files []*os.File) (*process, error) {
	// A write beyond the bound fails, and ends QEMU not. The shell sets it for itself, as only root with all its rights could for somebody else.
	const bounded = `trap '' XFSZ; ulimit -f "$1" && shift && exec "$@"`
	c := exec.Command("/bin/sh", append([]string{"-c", bounded, "sh", strconv.FormatUint(o.ScratchBytes/512, 10), o.Program}, o.args()...)...)
	said := &lastBytes{}
	c.Stderr, c.ExtraFiles = said, files
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TMPDIR=" + o.Scratch}
	// Of a group of its own, so that an interrupt of the terminal does not reach it.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: o.User}
	p := &process{ended: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the kernel kills QEMU when the thread ends that began it
		defer runtime.UnlockOSThread()
		err := c.Start()
		if err == nil {
			p.process = c.Process
		}
		started <- err
		if err == nil {
			if p.err = c.Wait(); p.err != nil {
				p.err = fmt.Errorf("%s: %w: %s", o.Program, p.err, said.lastLine())
			}
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		<-p.ended
		if o.User != nil {
			err = fmt.Errorf("as user %d: %w", o.User.Uid, err)
		}
		return nil, fmt.Errorf("start %s: %w", o.Program, err)
	}
	return p, nil
}

// kill ends QEMU, if it has not ended, and waits until it is gone.
func (p *process) kill() {
	_ = p.process.Kill() // it fails only if it has ended
	<-p.ended
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct{ p []byte }

const maxSaid = 8 << 10 // bytes

// Write implements io.Writer.
func (l *lastBytes) Write(p []byte) (int, error) {
	l.p = append(l.p, p...)
	l.p = l.p[max(0, len(l.p)-maxSaid):]
	return len(p), nil
}

func (l *lastBytes) lastLine() string {
	lines := strings.Split(strings.TrimSpace(string(l.p)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return last
	}
	return "it says nothing"
}
