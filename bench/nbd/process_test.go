package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestProcessIsAccountedFor runs a shell that works for a moment and then waits, and looks at what its group says.
func TestProcessIsAccountedFor(t *testing.T) {
	dir := t.TempDir()
	p, err := startProcess("test", filepath.Join(dir, "log"), []string{"/bin/sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; : >" + dir + "/worked; exec sleep 600"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "worked")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the shell does not get on")
		}
	}
	// The kernel adds up what a group of one small process holds in its own time, some seconds at most.
	u, err := p.group.usage()
	for deadline := time.Now().Add(30 * time.Second); err == nil && u.anon == 0 && time.Now().Before(deadline); u, err = p.group.usage() {
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	if u.cpu <= 0 || u.cpu > 30*time.Second || u.anon <= 0 || u.anon > 100<<20 {
		t.Errorf("%s: %+v", p.group.how(), u)
	}
	if own, err := processUsage(p.cmd.Process.Pid); err != nil || own.cpu < 0 || own.anon <= 0 {
		t.Errorf("of the process: %+v, %v", own, err)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if p.group.version != 0 {
		if _, err := os.Stat(p.group.memory); !os.IsNotExist(err) {
			t.Errorf("the group is still there: %v", err)
		}
	}
}

// TestServerThatEndsIsNotWaitedFor wants what it said in the error.
func TestServerThatEndsIsNotWaitedFor(t *testing.T) {
	dir := t.TempDir()
	p, err := startProcess("test", filepath.Join(dir, "log"), []string{"/bin/sh", "-c", "echo no such thing; exit 3"})
	if err != nil {
		t.Fatal(err)
	}
	err = p.listening(context.Background(), filepath.Join(dir, "sock"))
	if err == nil || !contains(err.Error(), "no such thing", "exit status 3") {
		t.Errorf("%v", err)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}

func TestListening(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := startProcess("test", filepath.Join(dir, "log"), []string{"sleep", "600"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.listening(context.Background(), socket); err != nil {
		t.Error(err)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}
