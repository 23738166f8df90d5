package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// fioTotal is how much a job writes, beside a log of 64 MiB: destage and the reuse of log files happen meanwhile.
func fioTotal() string {
	if testing.Short() {
		return "48M"
	}
	return "192M"
}

// TestFio writes and reads at random with checksums in every block, settles, restarts hvd, and verifies all of it again.
func TestFio(t *testing.T) {
	t.Parallel() // it waits for the disk
	needs(t, "fio")
	for _, job := range []struct{ name, args string }{
		{"4k", "--bs=4k --iodepth=32"},
		{"mixed", "--bssplit=512/10:4k/40:20k/10:64k/30:256k/10 --blockalign=512 --iodepth=16 --fsync=64"},
	} {
		t.Run(job.name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t)
			uri := d.disk("disk", "128MiB")
			state := filepath.Join(t.TempDir(), "state")
			common := append(strings.Fields(job.args), "--name=verify", "--ioengine=nbd", "--uri="+uri, "--size=128M", "--rw=randrw", "--rwmixread=30",
				"--io_size="+fioTotal(), "--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--output-format=terse", "--aux-path="+filepath.Dir(state))
			tool(t, "fio", append(common, "--do_verify=1")...)
			d.mustHaveWrapped()
			d.settle()
			d.stop()
			d.start()
			tool(t, "fio", append(common, "--verify_only=1")...)
		})
	}
}

// mustHaveWrapped checks that what a job wrote did not simply stay in the log.
func (d *daemon) mustHaveWrapped() {
	d.t.Helper()
	var stats struct{ GuestWrittenBytes, LogCapBytes, LogUsedBytes, StoredBytes uint64 }
	d.json(&stats, "store", "stats")
	if stats.LogUsedBytes > stats.LogCapBytes || stats.GuestWrittenBytes > stats.LogCapBytes && stats.StoredBytes == 0 {
		d.t.Errorf("destage did not happen: %s", fmt.Sprintf("%+v", stats))
	}
}
