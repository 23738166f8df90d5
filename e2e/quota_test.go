package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/guest"
)

// quotaScript writes more than the quota has room for, and checks what it wrote after it was let on.
const quotaScript = `
echo "GUEST-FILLING"
dd if=/dev/urandom of=/fill bs=1M count=14 2>/dev/null || { echo "GUEST-ERROR dd failed"; exit 1; }
before=$(md5sum < /fill)
sync
echo 3 > /proc/sys/vm/drop_caches
after=$(md5sum < /fill)
[ "$before" = "$after" ] || { echo "GUEST-ERROR the file is not what was written"; exit 1; }
echo "GUEST-FILLED"
`

// TestGuestPausesAtItsQuota fills the quota of a guest's disk. QEMU pauses the guest instead of telling it of an error, and once the quota is raised the guest goes on where it was and has lost nothing.
func TestGuestPausesAtItsQuota(t *testing.T) {
	t.Parallel() // the guest waits
	d := startDaemon(t)
	image := guestImage(t)
	d.run("volume", "import", "root", image.Disk)
	d.run("store", "settle", "--wait")
	var volume struct {
		ReferencedBytes uint64 `json:"referencedBytes"`
	}
	d.json(&volume, "volume", "show", "root")
	limit := (volume.ReferencedBytes + 6<<20) &^ 4095
	d.run("volume", "quota", "set", "root", "--referenced", fmt.Sprint(limit))
	other := d.disk("other", "64MiB")
	machine, err := guest.Boot(t.Context(), guest.BootOptions{Image: image, NBDURI: d.attach("root"), Script: quotaScript})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = machine.Kill()
		if t.Failed() {
			t.Logf("serial console:\n%s", machine.Serial())
		}
	})
	waitMarker(t, machine, "GUEST-FILLING")
	waitPaused(t, machine)
	d.json(&volume, "volume", "show", "root")
	if volume.ReferencedBytes > limit {
		t.Errorf("the guest's disk refers to %d bytes, its quota is %d", volume.ReferencedBytes, limit)
	}
	if alarms := alarmsOf(d); !strings.Contains(alarms, "quota of volume root is full") {
		t.Errorf("status does not say that the quota is full: %s", alarms)
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 32M", "-c", "read -P 7 0 32M", other) // the other volume does not notice

	d.run("volume", "quota", "set", "root", "--referenced", fmt.Sprint(limit+64<<20))
	if _, err := machine.QMP(t.Context(), "cont", nil); err != nil {
		t.Fatal(err)
	}
	waitMarker(t, machine, "GUEST-FILLED")
	if err := machine.Wait(); err != nil {
		t.Fatal(err)
	}
	if errs := machine.Errors(); len(errs) > 0 {
		t.Errorf("the guest met errors: %q", errs)
	}
	if alarms := alarmsOf(d); strings.Contains(alarms, "quota of volume root is full") {
		t.Errorf("status still says that the quota is full: %s", alarms)
	}
}

// TestUniqueQuotaIsNoSpaceForOneVolume: a client that writes more than its volume may hold alone is told that there is no space, and another volume's client notices nothing.
func TestUniqueQuotaIsNoSpaceForOneVolume(t *testing.T) {
	d := startDaemon(t)
	own, other := d.disk("own", "64MiB"), d.disk("other", "64MiB")
	noise := make([]byte, 16<<20)
	rng := rand.New(rand.NewPCG(1, 22))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	file := filepath.Join(t.TempDir(), "noise")
	if err := os.WriteFile(file, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(uri, from string) result {
		return tryTool(t, "qemu-io", "-f", "raw", "-c", "write -s "+file+" "+from+" 8M", "-c", "flush", uri)
	}
	if r := write(other, "0"); r.code != 0 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	d.run("volume", "quota", "set", "own", "--unique", "4MiB")
	var quota struct{ Unique *struct{ StoredBytes uint64 } }
	for end := time.Now().Add(patience); quota.Unique == nil; time.Sleep(20 * time.Millisecond) {
		if d.json(&quota, "volume", "quota", "show", "own"); time.Now().After(end) {
			t.Fatal("it is not measured")
		}
	}
	if r := write(own, "0"); !strings.Contains(r.stdout+r.stderr, "No space left") {
		t.Errorf("8 MiB in a row beyond a bound of 4 MiB: %s%s", r.stdout, r.stderr)
	}
	if alarms := alarmsOf(d); !strings.Contains(alarms, "quota on unique data of volume own is full") {
		t.Errorf("status does not say that the quota is full: %s", alarms)
	}
	if r := write(other, "16M"); r.code != 0 || strings.Contains(r.stdout+r.stderr, "failed") {
		t.Errorf("another volume: %s%s", r.stdout, r.stderr)
	}
	d.run("volume", "quota", "set", "own", "--unique", "64MiB")
	if r := write(own, "0"); r.code != 0 || strings.Contains(r.stdout+r.stderr, "failed") {
		t.Errorf("with a larger bound: %s%s", r.stdout, r.stderr)
	}
}

// alarmsOf returns the alarms of status in one line.
func alarmsOf(d *daemon) string {
	var status struct{ Alarms []string }
	d.json(&status, "status")
	return strings.Join(status.Alarms, "; ")
}

// waitPaused waits until QEMU has paused the guest because of an I/O error.
func waitPaused(t *testing.T, machine *guest.Machine) {
	t.Helper()
	deadline := time.Now().Add(2 * patience)
	for {
		var status struct{ Status string }
		reply, err := machine.QMP(t.Context(), "query-status", nil)
		if err == nil {
			err = json.Unmarshal(reply, &status)
		}
		if err != nil {
			t.Fatal(err)
		}
		if status.Status == "io-error" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest is %s, and not paused by an error", status.Status)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
