package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/guest"
)

// guestFiles is how many files a guest writes and fsyncs.
const guestFiles = 60

// TestGuestSurvivesKillsAndRestarts kills hvd twice under a guest that writes and fsyncs, and stops it with SIGTERM twice. The guest must notice nothing but pauses, and has all that it wrote. A server
// that says goodbye with NBD_ESHUTDOWN fails this.
func TestGuestSurvivesKillsAndRestarts(t *testing.T) {
	t.Parallel() // the guest waits
	image := guestImage(t)
	d := startDaemon(t)
	d.run("volume", "import", "root", image.Disk)
	d.run("snapshot", "create", "root@new")
	machine := bootGuest(t, image, d.attach("root"))
	for i, end := range []func(){d.kill, d.stop, d.kill, d.stop} {
		waitMarker(t, machine, fmt.Sprintf("SYNCED %d", 10+12*i))
		end()
		d.start()
		t.Logf("interrupted after file %d", machine.Synced())
	}
	waitMarker(t, machine, "GUEST-VERIFIED")
	if err := machine.Wait(); err != nil {
		t.Fatal(err)
	}
	waitMarker(t, machine, "GUEST-CLEAN")
	if errs := machine.Errors(); len(errs) > 0 {
		t.Errorf("the guest met errors: %q", errs)
	}
	if got := machine.Synced(); got != guestFiles {
		t.Errorf("the guest reported %d files, want %d", got, guestFiles)
	}
	out := filepath.Join(t.TempDir(), "root.raw")
	d.run("volume", "export", "root", out)
	if err := guest.CheckFiles(t.Context(), out, guestFiles); err != nil {
		t.Error(err)
	}
	d.run("volume", "export", "root@new", out)
	equalFiles(t, image.Disk, out)
}

func guestImage(t *testing.T) *guest.Image {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a real guest: not in -short")
	}
	needs(t, "qemu-system-x86_64", "mke2fs", "e2fsck", "debugfs")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := guest.Prepare(t.Context(), filepath.Join(cache, "hyper-nixos"), guest.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// bootGuest starts a guest that ends with the test, and shows its console if the test fails.
func bootGuest(t *testing.T, image *guest.Image, uri string) *guest.Machine {
	t.Helper()
	machine, err := guest.Boot(t.Context(), guest.BootOptions{Image: image, NBDURI: uri, Task: guest.TaskFsyncWriter, Count: guestFiles})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = machine.Kill()
		if t.Failed() {
			t.Logf("serial console:\n%s", machine.Serial())
		}
	})
	return machine
}

func waitMarker(t *testing.T, machine *guest.Machine, marker string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if _, err := machine.WaitMarker(ctx, marker); err != nil {
		t.Fatal(err)
	}
}
