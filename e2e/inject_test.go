package e2e

import (
	"strings"
	"testing"
)

// TestFaultsOnPurpose: a real client meets the faults that were asked for, everybody is told of them, and they end when they are taken away.
func TestFaultsOnPurpose(t *testing.T) {
	needs(t, "qemu-io", "nbdinfo")
	d := startDaemon(t)
	d.run("volume", "create", "v", "--size", "4MiB")
	uri := d.attach("v", "--inject", "error=1,errno=ENOSPC,on=write")
	write := func() string {
		t.Helper()
		got := tryTool(t, "qemu-io", "-f", "raw", "-c", "write -P 3 0 64k", "-c", "flush", uri)
		return got.stdout + got.stderr
	}
	if said := write(); !strings.Contains(said, "No space left") {
		t.Errorf("no fault: %s", said)
	}
	if got := d.try("status"); !strings.Contains(got.stderr, "FAULTS ON PURPOSE in volume v: error=1,errno=ENOSPC,on=write") {
		t.Errorf("status: %+v", got)
	}
	if got := d.try("volume", "show", "v"); !strings.Contains(got.stdout, "FAULTS") || !strings.Contains(got.stdout, "errno=ENOSPC") {
		t.Errorf("show: %+v", got)
	}
	d.kill()
	d.start()
	if said := write(); !strings.Contains(said, "No space left") {
		t.Errorf("the attachment has another nature after a restart: %s", said)
	}
	d.run("volume", "attach", "v", "--inject", "none")
	if said := write(); strings.Contains(said, "No space left") {
		t.Errorf("the fault is still there: %s", said)
	}
	if got := d.try("status"); got.stderr != "" {
		t.Errorf("status: %+v", got)
	}
	d.run("volume", "attach", "v", "--inject", "error=1")
	d.mustDetach("v")
	d.attach("v")
	if said := write(); strings.Contains(said, "rror") {
		t.Errorf("the fault outlived the attachment: %s", said)
	}
}

// TestReadOnlyAndSnapshots are exports that take no write.
func TestReadOnlyAndSnapshots(t *testing.T) {
	needs(t, "qemu-io", "nbdinfo")
	d := startDaemon(t)
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 9 0 1M", d.disk("v", "4MiB"))
	d.run("snapshot", "create", "v@s")
	snapshot := d.attach("v@s")
	d.mustDetach("v")
	d.refuses(4, []string{"not attached"}, "volume", "attach", "v@s")
	for _, uri := range []string{d.attach("v", "--read-only"), snapshot} {
		if out := tool(t, "nbdinfo", uri); !strings.Contains(out, "is_read_only: true") {
			t.Errorf("%s: %s", uri, out)
		}
		tool(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 9 0 1M", uri)
		if got := tryTool(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", uri); got.code == 0 {
			t.Errorf("%s took a write", uri)
		}
	}
}
