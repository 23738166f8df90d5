package inject

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// one is a table with one export.
type one struct{ dev nbd.Device }

func (o one) Acquire(string) (nbd.Export, func(), error) {
	return nbd.Export{Name: "disk", Device: o.dev}, func() {}, nil
}
func (o one) List() []nbd.Export { return nil }

// TestQemuMeetsFaults: what is injected is what QEMU sees, and it goes when it is taken away, with the client still there or not.
func TestQemuMeetsFaults(t *testing.T) {
	program, err := exec.LookPath("qemu-io")
	switch {
	case err == nil:
	case os.Getenv("CI") != "" || os.Getenv("HV_REQUIRE_TOOLS") != "":
		t.Fatal("qemu-io is not installed (Debian: apt install qemu-utils)")
	default:
		t.Skip("qemu-io is not installed (Debian: apt install qemu-utils)")
	}
	d := mustWrap(t, &slice{data: make([]byte, 1<<20)}, "error=1,errno=ENOSPC,on=write,delay=1ms")
	s, err := nbd.NewServer(one{d}, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "inject") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() { _ = s.Close(); <-ended })
	write := func() string {
		out, _ := exec.Command(program, "-f", "raw", "-c", "read 0 4k", "-c", "write -P 7 0 4k", "nbd+unix:///disk?socket="+l.Addr().String()).CombinedOutput()
		return string(out)
	}
	if out := write(); !strings.Contains(out, "No space left") || !strings.Contains(out, "read 4096/4096") {
		t.Errorf("with faults: %s", out)
	}
	if d.Counts().Failed == 0 {
		t.Error("no fault was counted")
	}
	if err := d.Set(Faults{}); err != nil {
		t.Fatal(err)
	}
	if out := write(); !strings.Contains(out, "wrote 4096/4096") {
		t.Errorf("without faults: %s", out)
	}
}
