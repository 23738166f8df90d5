package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// group accounts for the CPU time and memory of one server: a cgroup of version 1 or 2, or, where none can be made, what the system says of the process.
type group struct {
	memory, cpu string // folders; the same one in version 2; empty without a cgroup
	version     int
	pid         int // of the process, without a cgroup
}

// usage is what a server took. Memory is as of now, CPU time since its start.
type usage struct {
	cpu        time.Duration
	anon, file int64 // bytes
}

// newGroup makes a cgroup, or the next best thing.
func newGroup(name string) *group {
	own, mounts, err := cgroupPlaces()
	if err != nil {
		return &group{}
	}
	pattern := "hv-bench-" + name + "-"
	if dirs := mounts["memory"]; dirs != "" && mounts["cpuacct"] != "" {
		memory, err1 := makeBelow(pattern, filepath.Join(dirs, own["memory"]), dirs)
		cpu, err2 := makeBelow(pattern, filepath.Join(mounts["cpuacct"], own["cpuacct"]), mounts["cpuacct"])
		if err1 == nil && err2 == nil {
			return &group{memory: memory, cpu: cpu, version: 1}
		}
		_, _ = syscall.Rmdir(memory), syscall.Rmdir(cpu) // the one that was made
		return &group{}
	}
	root := mounts[""]
	for path := own[""]; root != "" && path != "/" && path != ""; {
		path = filepath.Dir(path) // a group that has processes can have no groups below it that account for memory
		parent := filepath.Join(root, path)
		text, _ := os.ReadFile(filepath.Join(parent, "cgroup.subtree_control"))
		if !slices.Contains(strings.Fields(string(text)), "memory") {
			continue
		}
		if dir, err := os.MkdirTemp(parent, pattern); err == nil {
			return &group{memory: dir, cpu: dir, version: 2}
		}
	}
	return &group{}
}

func makeBelow(pattern string, parents ...string) (dir string, err error) {
	for _, parent := range parents {
		if dir, err = os.MkdirTemp(parent, pattern); err == nil {
			return dir, nil
		}
	}
	return "", err
}

// cgroupPlaces returns, by controller, this process's own path and where the hierarchy is mounted; version 2 has the controller "".
func cgroupPlaces() (own, mounts map[string]string, err error) {
	own, mounts = map[string]string{}, map[string]string{}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for _, controller := range strings.Split(f[1], ",") {
				own[controller] = f[2]
			}
		}
	}
	file, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		switch f[2] {
		case "cgroup":
			for _, option := range strings.Split(f[3], ",") {
				mounts[option] = f[1]
			}
		case "cgroup2":
			mounts[""] = f[1]
		}
	}
	return own, mounts, lines.Err()
}

// wrap returns a command line that puts itself into the group before it becomes the server, so that not a page of it counts elsewhere.
func (g *group) wrap(args []string) []string {
	if g.version == 0 {
		return args
	}
	script := `echo $$ >"$1" && echo $$ >"$2" && shift 2 && exec "$@"`
	return append([]string{"/bin/sh", "-c", script, "sh", filepath.Join(g.memory, "cgroup.procs"), filepath.Join(g.cpu, "cgroup.procs")}, args...)
}

// how says what the figures are of.
func (g *group) how() string {
	switch g.version {
	case 1:
		return "cgroup v1: cpuacct.usage; total_rss and total_cache of memory.stat"
	case 2:
		return "cgroup v2: usage_usec of cpu.stat; anon and file of memory.stat"
	}
	return "no cgroup could be made: CPU time, RssAnon and RssFile of the process, without page cache"
}

func (g *group) usage() (u usage, err error) {
	switch g.version {
	case 1:
		var nanoseconds int64
		if nanoseconds, err = fileNumber(filepath.Join(g.cpu, "cpuacct.usage"), ""); err != nil {
			return u, err
		}
		u.cpu = time.Duration(nanoseconds)
		err = g.memoryStat(&u, "total_rss", "total_cache")
		return u, err
	case 2:
		var microseconds int64
		if microseconds, err = fileNumber(filepath.Join(g.cpu, "cpu.stat"), "usage_usec"); err != nil {
			return u, err
		}
		u.cpu = time.Duration(microseconds) * time.Microsecond
		err = g.memoryStat(&u, "anon", "file")
		return u, err
	}
	return processUsage(g.pid)
}

func (g *group) memoryStat(u *usage, anon, file string) (err error) {
	path := filepath.Join(g.memory, "memory.stat")
	if u.anon, err = fileNumber(path, anon); err == nil {
		u.file, err = fileNumber(path, file)
	}
	return err
}

// clockTicks of utime and stime in a second: USER_HZ, which is the same on all of Go's Linux ports.
const clockTicks = 100

func processUsage(pid int) (u usage, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name before it may hold anything
	f := strings.Fields(rest)
	if len(f) < 13 {
		return u, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(f))
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	u.cpu = time.Duration(user+system) * time.Second / clockTicks
	anon, err3 := fileNumber(fmt.Sprintf("/proc/%d/status", pid), "RssAnon:")
	file, err4 := fileNumber(fmt.Sprintf("/proc/%d/status", pid), "RssFile:")
	u.anon, u.file = anon<<10, file<<10
	return u, errors.Join(err1, err2, err3, err4)
}

// fileNumber reads a file of one number, or the one behind a word at the start of a line.
func fileNumber(path, word string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if word == "" && len(f) == 1 {
			return strconv.ParseInt(f[0], 10, 64)
		}
		if len(f) >= 2 && f[0] == word {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %q", path, word)
}

// remove waits for the last process to be gone from the group, which is a moment after it was reaped.
func (g *group) remove() error {
	var all error
	for _, dir := range slices.Compact([]string{g.memory, g.cpu}) {
		if dir == "" {
			continue
		}
		var err error
		for range 200 {
			if err = syscall.Rmdir(dir); !errors.Is(err, syscall.EBUSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return all
}
