package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// diskFlags are the further disks of a daemon beside its data directory.
func diskFlags(t *testing.T) (disks, flags []string) {
	root := shortDir(t)
	for _, name := range []string{"b", "c", "d"} {
		disks = append(disks, filepath.Join(root, name))
	}
	return disks, []string{"--store-disks", strings.Join(disks, ","), "--store-stripe", "3+1", "--store-log-copies", "3", "--store-keep-rate", "1GiB"}
}

// diskState is what `disk list` says.
type diskState struct {
	Degraded                         bool
	SegmentsLacking, SegmentsWaiting int
	Disks                            []struct{ Path, Log, Segments string }
}

func (d *daemon) remove(path string) {
	d.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		d.t.Fatal(err)
	}
}

// TestDiskLostUnderFio deletes one of four disks under fio verify, which sees no error, and replaces it; then kills the daemon and deletes another one, and at last the data directory.
func TestDiskLostUnderFio(t *testing.T) {
	t.Parallel() // it waits for fio, whose rate is bounded
	needs(t, "fio")
	disks, flags := diskFlags(t)
	d := startDaemon(t, flags...)
	uri := d.disk("disk", "96MiB")
	common := []string{"--name=verify", "--ioengine=nbd", "--uri=" + uri, "--size=96M", "--rw=randwrite", "--bssplit=4k/60:64k/40", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1",
		"--randseed=7", "--fsync=64", "--output-format=terse", "--aux-path=" + t.TempDir()}
	done := make(chan result, 1)
	go func() { done <- tryTool(t, "fio", append(common, "--do_verify=1", "--rate=12M")...) }()
	written := func() uint64 {
		var s struct{ GuestWrittenBytes uint64 }
		d.json(&s, "store", "stats")
		return s.GuestWrittenBytes
	}
	for end := time.Now().Add(patience); written() < 16<<20 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	d.remove(disks[1])
	if n := written(); n < 16<<20 || n > 80<<20 {
		t.Errorf("%s is lost after %d bytes, not in between", disks[1], n)
	}
	if got := <-done; got.code != 0 {
		t.Fatalf("fio ended with %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	d.settle()
	var state diskState
	if d.json(&state, "disk", "list"); !state.Degraded {
		t.Errorf("without %s: %+v", disks[1], state)
	}
	tool(t, "fio", append(common, "--verify_only=1")...)
	d.json(&state, "disk", "replace", disks[1], disks[1], "--wait")
	if state.Degraded || state.SegmentsLacking+state.SegmentsWaiting > 0 {
		t.Errorf("after %s was replaced: %+v", disks[1], state)
	}

	d.kill()
	d.remove(disks[0])
	d.start()
	tool(t, "fio", append(common, "--verify_only=1")...)
	other := disks[0] + "2"
	d.json(&state, "disk", "replace", disks[0], other, "--wait")
	if state.Degraded {
		t.Errorf("after %s was replaced: %+v", disks[0], state)
	}
	d.kill()
	for i := range d.flags {
		d.flags[i] = strings.Replace(d.flags[i], disks[0]+",", other+",", 1)
	}
	d.start()
	tool(t, "fio", append(common, "--verify_only=1")...)
	d.json(&state, "disk", "list")
	if state.Degraded {
		t.Errorf("after a restart: %+v", state)
	}

	d.kill()
	d.remove(d.dir)
	d.refusesToStart(1, "restore-data-dir")
	d.remove(d.dir)
	flags = d.flags
	d.flags = append(d.flags, "--store-restore-data-dir", "on")
	d.start()
	d.flags = flags
	d.run("volume", "attach", "disk")
	tool(t, "fio", append(common, "--verify_only=1")...)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if d.json(&state, "disk", "list"); !state.Degraded && state.SegmentsWaiting == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after the data directory was lost: %+v", state)
		}
	}
	var scrub struct{ Damaged uint64 }
	if d.json(&scrub, "store", "scrub", "start", "--find-only", "--wait"); scrub.Damaged > 0 {
		t.Errorf("%d segments are damaged", scrub.Damaged)
	}
	d.stop()
	d.check(other, disks[1], disks[2])
}

// TestDiskThatReturnsIsTakenBack takes a disk away from a daemon that is being written to, and gives it back: the daemon notices both by itself, says so by an alarm, and makes what the disk lacks.
func TestDiskThatReturnsIsTakenBack(t *testing.T) {
	disks, flags := diskFlags(t)
	d := startDaemon(t, flags...)
	uri := d.disk("disk", "64MiB")
	write := func(pattern, at string) {
		t.Helper()
		tool(t, "qemu-io", "-f", "raw", "-c", "write -P "+pattern+" "+at+" 16M", "-c", "flush", uri)
		d.settle()
	}
	write("1", "0")
	away := disks[1] + "-away"
	if err := os.Rename(disks[1], away); err != nil {
		t.Fatal(err)
	}
	var state diskState
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %+v", what, state)
			}
		}
	}
	await("the loss is not noticed", func() bool { d.json(&state, "disk", "list"); return state.Degraded })
	if alarms := alarmsOf(d); !strings.Contains(alarms, "redundancy is degraded") || !strings.Contains(alarms, "disk replace") {
		t.Errorf("status has no alarm: %s", alarms)
	}
	write("2", "16M")
	if err := os.Rename(away, disks[1]); err != nil {
		t.Fatal(err)
	}
	d.json(&state, "disk", "list", "--wait")
	if state.Degraded || state.SegmentsLacking+state.SegmentsWaiting > 0 {
		t.Errorf("it is there again: %+v", state)
	}
	if alarms := alarmsOf(d); strings.Contains(alarms, "redundancy is degraded") {
		t.Errorf("status still has the alarm: %s", alarms)
	}
	var scrub struct{ Damaged uint64 }
	if d.json(&scrub, "store", "scrub", "start", "--find-only", "--wait"); scrub.Damaged > 0 {
		t.Errorf("%d segments are damaged", scrub.Damaged)
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "read -P 1 0 16M", "-c", "read -P 2 16M 16M", uri)
	d.stop()
	d.check(disks...)
}

// TestKillAndLoseADisk is TestKill with the loss of a disk at each kill: what was replied is there all the same.
func TestKillAndLoseADisk(t *testing.T) {
	disks, flags := diskFlags(t)
	k := newKiller(t, startDaemon(t, flags...))
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for i := range rounds {
		lost := disks[i%len(disks)]
		k.lose = func() { k.d.remove(lost) }
		if err := k.round(i == rounds-1); err != nil {
			t.Fatalf("round %d, without %s: %v\nrepeat: go test ./e2e -run TestKillAndLose -kill.seed=%d", i, lost, err, *killSeed)
		}
		var state diskState
		k.d.json(&state, "disk", "replace", lost, lost, "--wait")
		if state.Degraded {
			t.Fatalf("round %d: %+v", i, state)
		}
	}
	k.report()
	k.d.settle()
	if err := k.judge(); err != nil {
		t.Errorf("after the last settle: %v", err)
	}
	k.d.stop()
	k.d.check(disks...)
}
