package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything may take before a test calls it a hang. It is no measure of speed, so it is far longer than a slow and loaded machine takes.
const patience = 4 * time.Minute

// daemon is an hvd on a data directory, started and ended any number of times.
type daemon struct {
	t     *testing.T
	dir   string
	flags []string // beside --data-dir

	cmd    *exec.Cmd // nil while it does not run
	exited chan struct{}
	log    *transcript
}

// transcript collects what a daemon says over all its lives.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// shortDir returns a folder whose paths fit a unix socket's 107 bytes; t.TempDir holds the test's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hve")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newDaemon returns a daemon on a fresh directory that does not run yet. Its log has the least cap, so that destage and reclaim of log files are part of every test.
func newDaemon(t *testing.T, flags ...string) *daemon { return daemonIn(t, shortDir(t), flags...) }

// daemonIn is newDaemon on a given directory.
func daemonIn(t *testing.T, dir string, flags ...string) *daemon {
	d := &daemon{t: t, dir: dir, log: &transcript{}}
	d.flags = append([]string{"--listen", "off", "--memory", "256MiB", "--store-log-cap", "64MiB"}, flags...)
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("hvd on %s said:\n%s", dir, d.log)
		}
	})
	return d
}

// startDaemon returns a daemon that is ready.
func startDaemon(t *testing.T, flags ...string) *daemon {
	t.Helper()
	d := newDaemon(t, flags...)
	d.start()
	return d
}

// command is an hvd that is not started. No config file of this machine has a say.
func (d *daemon) command() *exec.Cmd {
	cmd := exec.Command(hvdPath, append([]string{"--data-dir", d.dir, "--config", os.DevNull}, d.flags...)...)
	cmd.Env = os.Environ()
	return cmd
}

// start runs the daemon and returns when it is ready.
func (d *daemon) start() {
	d.t.Helper()
	d.launch()
	if got := d.try("status", "--wait", "180s"); got.code != 0 {
		d.t.Fatalf("hvd is not ready: %s\n%s", got.stderr, d.log)
	}
}

// launch runs the daemon and does not wait.
func (d *daemon) launch() {
	d.t.Helper()
	cmd := d.command()
	cmd.Stderr = d.log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.cmd, d.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait() // the state is read from cmd
		close(exited)
	}(d.exited)
}

// pid of the running daemon.
func (d *daemon) pid() int { return d.cmd.Process.Pid }

// kill ends the daemon with SIGKILL, if it runs.
func (d *daemon) kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.exited
	d.cmd = nil
}

// stop ends the daemon with SIGTERM, which must end well.
func (d *daemon) stop() {
	d.t.Helper()
	if code := d.terminate(); code != 0 {
		d.t.Fatalf("hvd ended with %d after SIGTERM\n%s", code, d.log)
	}
}

// terminate sends SIGTERM and returns the exit code.
func (d *daemon) terminate() int {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Fatal(err)
	}
	return d.wait()
}

// wait returns the exit code of a daemon that ends by itself.
func (d *daemon) wait() int {
	d.t.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		_ = d.cmd.Process.Signal(syscall.SIGABRT) // the log then has all stacks
		<-d.exited
		d.t.Fatalf("hvd does not end\n%s", d.log)
	}
	code := d.cmd.ProcessState.ExitCode()
	d.cmd = nil
	return code
}

// refusesToStart expects an end with the given exit code, with one line that holds all of says and is the last one.
func (d *daemon) refusesToStart(code int, says ...string) {
	d.t.Helper()
	before := len(d.log.String())
	d.launch()
	got := d.wait()
	text := d.log.String()[before:]
	if got != code {
		d.t.Errorf("hvd ended with %d, want %d: %s", got, code, text)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for _, line := range lines[:len(lines)-1] {
		if !strings.HasPrefix(line, "time=") {
			d.t.Errorf("beside its log and one line of error hvd says %q", line)
		}
	}
	d.saysAll(lines[len(lines)-1], says)
}

func (d *daemon) saysAll(line string, says []string) {
	d.t.Helper()
	for _, want := range says {
		if !strings.Contains(line, want) {
			d.t.Errorf("the error does not say %q: %s", want, line)
		}
	}
}

func (d *daemon) nbdSocket() string     { return filepath.Join(d.dir, "nbd.sock") }
func (d *daemon) uri(vol string) string { return "nbd+unix:///" + vol + "?socket=" + d.nbdSocket() }

// disk makes a volume, attaches it and returns its URI.
func (d *daemon) disk(name, size string, flags ...string) string {
	d.t.Helper()
	d.run(append([]string{"volume", "create", name, "--size", size}, flags...)...)
	return d.attach(name)
}

// attach returns the URI of an export.
func (d *daemon) attach(name string, flags ...string) string {
	d.t.Helper()
	var attached struct{ URI string }
	d.json(&attached, append([]string{"volume", "attach", name}, flags...)...)
	return attached.URI
}

// settle moves everything into segments and reclaims.
func (d *daemon) settle() {
	d.t.Helper()
	d.run("store", "settle", "--wait")
}

var rssAnon = regexp.MustCompile(`RssAnon:\s+(\d+) kB`)

// anonymousBytes is how much anonymous memory the daemon has in RAM.
func (d *daemon) anonymousBytes() int64 {
	d.t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(d.pid()) + "/status")
	if err != nil {
		d.t.Fatal(err)
	}
	found := rssAnon.FindSubmatch(text)
	if found == nil {
		d.t.Fatalf("no RssAnon in %s", text)
	}
	kib, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		d.t.Fatal(err)
	}
	return kib << 10
}
