package e2e

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A guard that is left alone with guests that may be frozen lets go of what it has of hv-backup's streams, so that nobody who reads these waits for it, and thaws on.
func TestThawGuardLetsGo(t *testing.T) {
	socket := filepath.Join(shortDir(t), "libvirt")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed := make(chan struct{})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close() // a libvirtd that is starting
			select {
			case dialed <- struct{}{}:
			case <-t.Context().Done():
				return
			}
		}
	}()
	guard := exec.Command(backupPath, "thaw-guard", "--connect", "qemu:///session?socket="+socket, "--", machineUUID)
	in, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var streams []*os.File
	for _, to := range []*io.Writer{&guard.Stdout, &guard.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		defer r.Close()
		if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		*to, streams = w, append(streams, r)
	}
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = guard.Process.Kill()
		_ = guard.Wait()
	}()
	for _, w := range []io.Writer{guard.Stdout, guard.Stderr} {
		_ = w.(*os.File).Close()
	}
	var ready [1]byte
	if _, err := io.ReadFull(streams[0], ready[:]); err != nil || ready[0] != 'r' {
		t.Fatalf("it says %q, %v", ready, err)
	}
	if _, err := in.Write([]byte{'l'}); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	for i, r := range streams {
		if text, err := io.ReadAll(r); err != nil || len(text) > 0 {
			t.Errorf("stream %d: %q, %v", i+1, text, err)
		}
	}
	for range 3 { // it tries again and again
		select {
		case <-dialed:
		case <-time.After(patience):
			t.Fatal("it does not thaw on")
		}
	}
}
