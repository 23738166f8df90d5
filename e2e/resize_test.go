package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/guest"
)

// growingGuest writes and fsyncs until its disk has another size, uses the new end, and does so a second time.
const growingGuest = `
size() { cat /sys/block/vda/size; }
seq 100000 | head -c 65536 >/tmp/end
n=0
echo "GUEST-SIZE $(size)"
for round in 1 2; do
	old=$(size)
	while [ "$(size)" = "$old" ]; do
		n=$((n + 1))
		dd if=/dev/urandom of=/hv/f$((n % 8)) bs=64k count=1 conv=fsync 2>/dev/null || echo "GUEST-ERROR write $n failed"
		echo "SYNCED $n"
	done
	new=$(size)
	dd if=/tmp/end of=/dev/vda bs=64k seek=$((new / 128 - 1)) conv=notrunc,fsync 2>/dev/null || echo "GUEST-ERROR the new end cannot be written"
	echo 3 >/proc/sys/vm/drop_caches
	dd if=/dev/vda bs=64k skip=$((new / 128 - 1)) count=1 2>/dev/null | cmp -s - /tmp/end || echo "GUEST-ERROR the new end reads back wrong"
	echo "GUEST-SIZE $new"
done
`

// TestResizeUnderAGuest grows the disk of a guest that writes all the while, twice: its connection ends, QEMU comes back and learns the size, block_resize tells the guest, and
// the guest meets no error. Over TCP QEMU runs with the very lines of docs/nbd.md.
func TestResizeUnderAGuest(t *testing.T) {
	t.Parallel() // guests wait
	image := guestImage(t)
	for _, door := range []struct {
		name, node string
		open       func(t *testing.T) (d *daemon, attach func() guest.BootOptions)
	}{
		{"unix", "root0", func(t *testing.T) (*daemon, func() guest.BootOptions) {
			d := startDaemon(t)
			return d, func() guest.BootOptions { return guest.BootOptions{NBDURI: d.attach("web1")} }
		}},
		{"TLS", "disk0", func(t *testing.T) (*daemon, func() guest.BootOptions) {
			s := startSecured(t)
			return s.daemon, func() guest.BootOptions {
				s.run("volume", "attach", "web1", "--tcp", "--client", "node1.example")
				return guest.BootOptions{Disk: documentedDisk(t, "### TLS step by step", s.port, wallet(t, s.ca, "node1.example"))}
			}
		}},
		{"PSK", "disk0", func(t *testing.T) (*daemon, func() guest.BootOptions) {
			dir, listen := shortDir(t), freePort(t, "0.0.0.0")
			_, port, _ := net.SplitHostPort(listen)
			put(t, filepath.Join(dir, "keys.psk"), []byte("node1:"+strings.Repeat("0123456789abcdef", 4)+"\n"))
			d := startDaemon(t, "--nbd-listen", listen, "--nbd-tls-psk-file", filepath.Join(dir, "keys.psk"))
			return d, func() guest.BootOptions {
				d.run("volume", "attach", "web1", "--tcp", "--client", "psk:node1")
				return guest.BootOptions{Disk: documentedDisk(t, "### Pre-shared keys step by step", port, dir)}
			}
		}},
	} {
		t.Run(door.name, func(t *testing.T) {
			t.Parallel()
			d, attach := door.open(t)
			growTwice(t, d, image, door.node, attach)
		})
	}
}

// growTwice runs the guest over the door that attach opens for volume web1.
func growTwice(t *testing.T, d *daemon, image *guest.Image, node string, attach func() guest.BootOptions) {
	d.run("volume", "import", "web1", image.Disk)
	var disk struct{ SizeBytes uint64 }
	d.json(&disk, "volume", "show", "web1")
	options := attach()
	options.Image, options.Script = image, growingGuest
	machine, err := guest.Boot(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = machine.Kill()
		if t.Failed() {
			t.Logf("serial console:\n%s", machine.Serial())
		}
	})
	waitMarker(t, machine, "SYNCED 3")
	d.refuses(4, []string{"--force"}, "volume", "resize", "web1", "--size", "1MiB", "--shrink")
	first, last := disk.SizeBytes+64<<20, disk.SizeBytes+192<<20
	d.run("volume", "resize", "web1", "--size", bytesText(first))
	blockResize(t, machine, node, first)
	waitMarker(t, machine, fmt.Sprintf("GUEST-SIZE %d", first/512))
	d.run("volume", "resize", "web1", "--size", bytesText(first+32<<20)) // which QEMU may or may not learn of
	d.run("volume", "resize", "web1", "--size", bytesText(last))
	blockResize(t, machine, node, last)
	waitMarker(t, machine, fmt.Sprintf("GUEST-SIZE %d", last/512))
	waitMarker(t, machine, "GUEST-CLEAN")
	if err := machine.Wait(); err != nil {
		t.Fatal(err)
	}
	if errs := machine.Errors(); len(errs) > 0 {
		t.Errorf("the guest met errors: %q", errs)
	}
	out := filepath.Join(t.TempDir(), "disk.raw")
	d.run("volume", "export", "web1", out)
	var end bytes.Buffer
	for n := 1; end.Len() < 64<<10; n++ {
		fmt.Fprintln(&end, n)
	}
	got := contents(t, out)
	if uint64(len(got)) != last {
		t.Fatalf("%d bytes, want %d", len(got), last)
	}
	for _, size := range []uint64{first, last} {
		if !bytes.Equal(got[size-64<<10:size], end.Bytes()[:64<<10]) {
			t.Errorf("what the guest wrote to the end of %d bytes is not there", size)
		}
	}
}

// documentedDisk returns the arguments with which docs/nbd.md has QEMU open volume web1, under a heading, made to fit a port of this machine and a folder with the client's files.
func documentedDisk(t *testing.T, heading, port, dir string) []string {
	t.Helper()
	page := string(contents(t, "../docs/nbd.md"))
	_, text, found := strings.Cut(page, heading)
	_, text, runs := strings.Cut(text, "qemu-system-x86_64 … \\\n")
	text, _, ends := strings.Cut(text, "\n\n")
	if !found || !runs || !ends || !strings.Contains(text, "tls-creds=") {
		t.Fatalf("docs/nbd.md has no such command below %q", heading)
	}
	return strings.Fields(strings.NewReplacer("\\\n", " ", "/etc/pki/node1", dir, "storage1.example", "127.0.0.1", "10809", port).Replace(text))
}

// blockResize tells the guest the size that QEMU has learned. It asks again while QEMU has not come back yet, which it does with the next request of the guest.
func blockResize(t *testing.T, machine *guest.Machine, node string, size uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		_, err := machine.QMP(ctx, "block_resize", map[string]any{"node-name": node, "size": size})
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "Cannot grow NBD nodes") {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
