package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/guest"
)

// demoOptions builds the two programs, and gives the demo a cache folder of its own in which the guest's disks are the user's.
func demoOptions(t *testing.T) options {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a real guest: not in -short")
	}
	for _, name := range []string{"qemu-system-x86_64", "apt-get"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, "../hvd", "../hv-storage-fabric").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	user, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	disks := filepath.Join(user, "hyper-nixos", "guest")
	if err := os.MkdirAll(disks, 0o755); err != nil {
		t.Fatal(err)
	}
	cache, err := os.MkdirTemp("", "hvdemo") // short, for the sockets inside
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(cache) })
	if err := os.Symlink(disks, filepath.Join(cache, "guest")); err != nil {
		t.Fatal(err)
	}
	return options{guest: guest.Busybox, bin: bin, cache: cache}
}

// nothingLeft wants the demo's folder gone.
func nothingLeft(t *testing.T, o options) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(o.cache, "demo-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestDemo(t *testing.T) {
	o := demoOptions(t)
	var out bytes.Buffer
	if err := run(t.Context(), o, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
	for _, want := range []string{"✓", "0 errors, powered off", "e2fsck -fn is clean", "finds nothing wrong", "non-zero per stored"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not say %q", want)
		}
	}
	nothingLeft(t, o)
}

// cutter cancels a demo when it begins the step of that name, and notes what the demo printed.
type cutter struct {
	mu     sync.Mutex
	said   strings.Builder
	at     string
	cancel context.CancelFunc
}

func (c *cutter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said.Write(p); strings.Contains(string(p), c.at) {
		c.cancel()
	}
	return len(p), nil
}

// TestInterrupt ends the demo at its busiest moment: its guest and its hvd must end, and its folder must go.
func TestInterrupt(t *testing.T) {
	o := demoOptions(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &cutter{at: "guest fsyncs files", cancel: cancel}
	if err := run(ctx, o, out); !errors.Is(err, context.Canceled) {
		t.Errorf("want context.Canceled, got %v\n%s", err, out.said.String())
	}
	nothingLeft(t, o)
	for _, cmdline := range commandLines(t) {
		if strings.Contains(cmdline, o.bin) || strings.Contains(cmdline, o.cache) {
			t.Errorf("a process is left: %q", cmdline)
		}
	}
}

// commandLines of all processes there are.
func commandLines(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(paths) == 0 {
		t.Fatalf("list processes: %d, %v", len(paths), err)
	}
	var lines []string
	for _, path := range paths {
		if line, err := os.ReadFile(path); err == nil { // else it has just ended
			lines = append(lines, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return lines
}

// TestWithoutPrograms fails at the first step that needs them, with a line that says what is missing.
func TestWithoutPrograms(t *testing.T) {
	o := options{guest: guest.Busybox, bin: t.TempDir(), cache: t.TempDir()}
	d := &demo{options: o, dir: t.TempDir()}
	if _, err := d.start(t.Context()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "hvd") {
		t.Errorf("want an error about hvd, got %v", err)
	}
}

// TestDaemonThatEndsAtOnce does not wait for its readiness until the time is over.
func TestDaemonThatEndsAtOnce(t *testing.T) {
	o := options{bin: t.TempDir()}
	for name, body := range map[string]string{"hvd": "echo no such luck >&2; exit 3", "hv-storage-fabric": "exec sleep 600"} {
		if err := os.WriteFile(filepath.Join(o.bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := &demo{options: o, dir: t.TempDir(), fabric: fabric{bin: o.bin}}
	if _, err := d.start(t.Context()); err == nil || !strings.Contains(err.Error(), "hvd ended at once: exit status 3") {
		t.Errorf("got %v", err)
	}
	if log := tail(d.logPath()); log != "no such luck\n" {
		t.Errorf("tail of the log: %q", log)
	}
}

func TestFollow(t *testing.T) {
	var out bytes.Buffer
	hangs := func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }
	err := follow(t.Context(), &out, []step{
		{"one", time.Minute, func(context.Context) (string, error) { return "well done", nil }},
		{"two", time.Millisecond, hangs},
		{"three", time.Minute, func(context.Context) (string, error) { t.Error("three was done after two had failed"); return "", nil }},
	})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "two: ") {
		t.Errorf("got %v", err)
	}
	if text := out.String(); strings.Count(text, "✓") != 1 || strings.Count(text, "✗") != 1 || !strings.Contains(text, "well done") {
		t.Errorf("printed:\n%s", text)
	}
}

func TestParse(t *testing.T) {
	if o, err := parse([]string{"--guest", "debian", "--cache", "c"}); err != nil || o.guest != guest.Debian || o.cache != "c" || o.bin != "bin" {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, args := range [][]string{{"--guest", "plan9"}, {"stray"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}

func TestNonZero(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(off int64, p ...byte) {
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	write(0, make([]byte, 3<<20+100)...) // zeroes
	write(5000, 1)
	write(2<<20, 1)
	write(3<<20+50, 1)
	want := uint64(2*4096 + 100) // two blocks, and what there is of the third
	if n, err := nonZero(t.Context(), f.Name()); err != nil || n != want {
		t.Errorf("got %d, %v, want %d", n, err, want)
	}
	write(64<<20+4097, 1) // behind a hole, which fills up the block before it
	if err := f.Truncate(128 << 20); err != nil {
		t.Fatal(err)
	}
	if n, err := nonZero(t.Context(), f.Name()); err != nil || n != 4*4096 {
		t.Errorf("with holes: got %d, %v, want four blocks", n, err)
	}
}
