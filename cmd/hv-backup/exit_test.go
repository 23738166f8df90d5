package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

// What cannot be reached has a code of its own and says what to do, whatever the reason wraps.
func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		hint string
	}{
		{&client.UnreachableError{Endpoint: "unix:/x", Cause: &net.OpError{Op: "dial", Err: syscall.ENOENT}}, exitUnreachable, "start hvd"},
		{fmt.Errorf("back up web1: %w", &client.UnreachableError{Endpoint: "unix:/x", Cause: syscall.ECONNREFUSED}), exitUnreachable, "--endpoint"},
		{&client.UnreachableError{Endpoint: "unix:/x", Cause: fmt.Errorf("connect: %w", fs.ErrPermission)}, exitRefused, "root and the user"},
		{fmt.Errorf("open the repository: %w: given up: %w", backend.ErrUnreachable, syscall.ECONNREFUSED), exitUnreachable, "--repo"},
		{&stepError{exitNoAnswer, "it does not boot"}, exitNoAnswer, ""},
		{fmt.Errorf("policy nightly: %w", &stepError{exitNoAnswer, "it does not boot"}), exitNoAnswer, ""},
		{fmt.Errorf("x: %w", block.ErrNotFound), exitNotFound, ""},
		{&client.Error{Code: client.CodeBusy}, exitRefused, ""},
	} {
		if code, hint := judge(&cobra.Command{}, c.err); code != c.code || !strings.Contains(hint, c.hint) || (c.hint == "") != (hint == "") {
			t.Errorf("%v: %d %q, want %d %q", c.err, code, hint, c.code, c.hint)
		}
	}
}

// Commands that need hvd end alike where there is none, or nobody listens any more; one that was interrupted has the signal's code.
func TestUnreachable(t *testing.T) {
	p := newPlace(t)
	deaf := filepath.Join(t.TempDir(), "hvd.sock")
	l, err := net.Listen("unix", deaf)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	name := p.backUp(3)
	for _, socket := range []string{deaf, "/no/such.sock"} {
		for _, command := range []string{"run web1", "cdp points web1", "cdp mark web1 x", "restore " + name + " --to-volume v", "restore " + name + " --to-volume v --live", "repair-store", "bench --volume web1", "repo repair --from-volume web1"} {
			p.ends(exitUnreachable, socket, append(strings.Fields(command), "--endpoint", "unix:"+socket)...)
		}
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(&console.Interrupted{Signal: signal})
		var told bytes.Buffer
		a := newApp(strings.NewReader(""), &bytes.Buffer{}, &told, func(string) string { return "" })
		if got := run(ctx, a, []string{"repo", "verify", "--repo", p.dir, "--identity", p.identity}); got != 128+int(signal) || !strings.Contains(told.String(), "interrupted") {
			t.Errorf("%v: it ends with %d and says %q", signal, got, told.String())
		}
	}
}
