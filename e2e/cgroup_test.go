package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cgroup is a memory cgroup of version 1 or 2, made for one daemon. Nothing of it may be swapped out.
type cgroup struct {
	t     *testing.T
	dir   string
	files cgroupFiles
}

// cgroupFiles are the names of one thing in the two versions.
type cgroupFiles struct {
	limit, swap, peak, anon, kills string
}

var (
	cgroupV1 = cgroupFiles{limit: "memory.limit_in_bytes", swap: "memory.memsw.limit_in_bytes", peak: "memory.max_usage_in_bytes", anon: "rss", kills: "memory.oom_control"}
	cgroupV2 = cgroupFiles{limit: "memory.max", swap: "memory.swap.max", peak: "memory.peak", anon: "anon", kills: "memory.events"}
)

// newCgroup makes a memory cgroup with a limit. It returns nil and the reasons where this machine allows none, which is no fault of the test; everything else fails it.
func newCgroup(t *testing.T, limitBytes int64) (*cgroup, error) {
	t.Helper()
	var reasons []error
	for _, parent := range cgroupParents(t) {
		dir, err := os.MkdirTemp(parent.dir, "hv-e2e-")
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
		g := &cgroup{t: t, dir: dir, files: parent.files}
		if err := g.bound(limitBytes); err != nil {
			reasons = append(reasons, err)
			continue
		}
		return g, nil
	}
	if len(reasons) == 0 {
		return nil, errors.New("no memory controller is mounted")
	}
	for _, reason := range reasons {
		if impossible := []error{os.ErrPermission, os.ErrNotExist, syscall.EROFS}; !slices.ContainsFunc(impossible, func(e error) bool { return errors.Is(reason, e) }) {
			t.Fatalf("make a memory cgroup: %v", errors.Join(reasons...))
		}
	}
	return nil, errors.Join(reasons...)
}

// cgroupParent is a place where a memory cgroup may be made.
type cgroupParent struct {
	dir   string
	files cgroupFiles
}

// cgroupParents lists the places: below this process's own cgroup in version 1; in version 2, where a group has processes or subgroups, from the own one's parent upwards.
func cgroupParents(t *testing.T) (all []cgroupParent) {
	t.Helper()
	own := map[string]string{} // path of this process by controllers
	for line := range strings.Lines(string(contents(t, "/proc/self/cgroup"))) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			own[f[1]] = f[2]
		}
	}
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		f := strings.Fields(lines.Text())
		switch {
		case f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "memory"):
			for controllers, path := range own {
				if slices.Contains(strings.Split(controllers, ","), "memory") {
					all = append(all, cgroupParent{filepath.Join(f[1], path), cgroupV1}, cgroupParent{f[1], cgroupV1})
				}
			}
		case f[2] == "cgroup2":
			for path := own[""]; path != "/" && path != ""; {
				path = filepath.Dir(path)
				if dir := filepath.Join(f[1], path); delegatesMemory(dir) {
					all = append(all, cgroupParent{dir, cgroupV2})
				}
			}
		}
	}
	return all
}

// delegatesMemory reports whether subgroups of a group of version 2 have the memory controller.
func delegatesMemory(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	return err == nil && slices.Contains(strings.Fields(string(text)), "memory")
}

func (g *cgroup) bound(limitBytes int64) error {
	text := []byte(strconv.FormatInt(limitBytes, 10))
	if err := os.WriteFile(filepath.Join(g.dir, g.files.limit), text, 0); err != nil {
		return err
	}
	if g.files == cgroupV2 {
		text = []byte("0")
	}
	err := os.WriteFile(filepath.Join(g.dir, g.files.swap), text, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		err = nil // a kernel that does not account for swap; version 1 does not let the file be made
	}
	return err
}

// removeCgroup waits for the last process to be gone from it, which is a moment after it was reaped.
func removeCgroup(t *testing.T, dir string) {
	var err error
	for range 3000 {
		if err = syscall.Rmdir(dir); err == nil || !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("remove cgroup %s: %v", dir, err)
	}
}

// command returns one that is in the cgroup from its first page on.
func (g *cgroup) command(cmd *exec.Cmd) *exec.Cmd {
	inside := exec.Command("/bin/sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs"), cmd.Path}, cmd.Args[1:]...)...)
	inside.Env = cmd.Env
	return inside
}

// number reads a file of one number, or the one behind a word.
func (g *cgroup) number(file, word string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if word == "" || len(f) == 2 && f[0] == word {
			return strconv.ParseInt(f[len(f)-1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %q", file, word)
}

func (g *cgroup) must(file, word string) int64 {
	g.t.Helper()
	n, err := g.number(file, word)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// oomKills is how many processes the kernel has ended for want of memory.
func (g *cgroup) oomKills() int64 { return g.must(g.files.kills, "oom_kill") }

// peak is the most that the cgroup ever used, copies of files included, for the report: old kernels do not say.
func (g *cgroup) peak() string {
	n, err := g.number(g.files.peak, "")
	if err != nil {
		return "a peak that this kernel does not tell"
	}
	return fmt.Sprintf("a peak of %.1f MiB with page cache", float64(n)/(1<<20))
}

// startIn runs the daemon in a cgroup and returns when it is ready. Without one, it runs as always.
func (d *daemon) startIn(g *cgroup) {
	d.t.Helper()
	if g == nil {
		d.start()
		return
	}
	cmd := g.command(d.command())
	cmd.Stderr = d.log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.cmd, d.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait() // the state is read from cmd
		close(exited)
	}(d.exited)
	if got := d.try("status", "--wait", "180s"); got.code != 0 {
		d.t.Fatalf("hvd is not ready: %s\n%s", got.stderr, d.log)
	}
}
