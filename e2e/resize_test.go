package e2e

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/guest"
)

// growingGuest writes and fsyncs until its disk is another size, and then uses the new end.
const growingGuest = `
size() { cat /sys/block/vda/size; }
old=$(size)
echo "GUEST-SIZE $old"
n=0
while [ "$(size)" = "$old" ]; do
	n=$((n + 1))
	dd if=/dev/urandom of=/hv/f$((n % 8)) bs=64k count=1 conv=fsync 2>/dev/null || echo "GUEST-ERROR write $n failed"
	echo "SYNCED $n"
done
new=$(size)
echo "GUEST-SIZE $new"
seq 100000 | head -c 65536 >/tmp/end
dd if=/tmp/end of=/dev/vda bs=64k seek=$((new / 128 - 1)) conv=notrunc,fsync 2>/dev/null || echo "GUEST-ERROR the new end cannot be written"
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=64k skip=$((new / 128 - 1)) count=1 2>/dev/null | cmp -s - /tmp/end || echo "GUEST-ERROR the new end reads back wrong"
`

// TestResizeUnderAGuest grows the disk of a guest that writes all the while: its connection ends, QEMU comes back and learns the size, block_resize tells the guest, and
// the guest meets no error.
func TestResizeUnderAGuest(t *testing.T) {
	image := guestImage(t)
	d := startDaemon(t)
	d.run("volume", "import", "root", image.Disk)
	var root struct{ SizeBytes uint64 }
	d.json(&root, "volume", "show", "root")
	machine, err := guest.Boot(t.Context(), guest.BootOptions{Image: image, NBDURI: d.attach("root"), Script: growingGuest})
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
	d.refuses(4, []string{"--force"}, "volume", "resize", "root", "--size", "1MiB", "--shrink")
	grown := root.SizeBytes + 64<<20
	d.run("volume", "resize", "root", "--size", bytesText(grown))
	blockResize(t, machine, grown)
	waitMarker(t, machine, fmt.Sprintf("GUEST-SIZE %d", grown/512))
	waitMarker(t, machine, "GUEST-CLEAN")
	if err := machine.Wait(); err != nil {
		t.Fatal(err)
	}
	if errs := machine.Errors(); len(errs) > 0 {
		t.Errorf("the guest met errors: %q", errs)
	}
	out := filepath.Join(t.TempDir(), "root.raw")
	d.run("volume", "export", "root", out)
	var end bytes.Buffer
	for n := 1; end.Len() < 64<<10; n++ {
		fmt.Fprintln(&end, n)
	}
	got := contents(t, out)
	if uint64(len(got)) != grown || !bytes.Equal(got[grown-64<<10:], end.Bytes()[:64<<10]) {
		t.Errorf("%d bytes, want %d, and the end that the guest wrote", len(got), grown)
	}
}

// blockResize tells the guest the size that QEMU has learned. It asks again while QEMU has not come back yet, which it does with the next request of the guest.
func blockResize(t *testing.T, machine *guest.Machine, size uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		_, err := machine.QMP(ctx, "block_resize", map[string]any{"node-name": "root0", "size": size})
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
