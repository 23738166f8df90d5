package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/libvirt"
)

// The guard dials again and again, for each guest, and says in the end which may be frozen.
func TestThawGuardTriesOn(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var dialed atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dialed.Add(1)
			_ = c.Close()
		}
	}()
	a := &app{getenv: func(string) string { return "" }}
	ids := []string{"6f0c2f3e-1111-4222-8333-444455556666", "6f0c2f3e-1111-4222-8333-444455556667"}
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	if err := a.thawAll(ctx, "qemu:///session?socket="+socket, ids); !errors.Is(err, libvirt.ErrFrozen) || ctx.Err() == nil {
		t.Errorf("nobody answers: %v", err)
	}
	if n := dialed.Load(); n < 4 {
		t.Errorf("it dialed %d times", n)
	}
	if err := a.thawAll(t.Context(), "qemu+ssh://far/system", ids); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("another host's: %v", err)
	}
}
