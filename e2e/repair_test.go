package e2e

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestRepairUnderFio flips 1,000 bytes and loses 200 sectors of the sealed segments of a running daemon while fio reads and verifies: fio never sees an error, a scrub finds
// the rest, and nothing is restarted in between.
func TestRepairUnderFio(t *testing.T) {
	t.Parallel() // it waits for the disk
	needs(t, "fio")
	size := "192M"
	if testing.Short() {
		size = "64M"
	}
	// 8+4 reaches what 16+2 mostly does not: four hits of one stripe.
	d := startDaemon(t, "--store-parity", "8+4", "--store-keep-rate", "1GiB")
	uri := d.disk("disk", "256MiB")
	common := []string{"--name=verify", "--ioengine=nbd", "--uri=" + uri, "--size=" + size, "--rw=write", "--bs=64k", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--randseed=7",
		"--refill_buffers", "--output-format=terse", "--aux-path=" + t.TempDir()}
	tool(t, "fio", append(common, "--do_verify=0")...)
	d.settle()
	d.stop() // what is open now is sealed by the next start
	d.start()
	var stats struct{ GuardedBytes, UnguardedBytes, DamageFound, DamageMended, DamageLost, InlineRepairs uint64 }
	eventually(t, "parity of every sealed segment", func() bool {
		d.json(&stats, "store", "stats")
		return stats.GuardedBytes > 0 && stats.UnguardedBytes == 0
	})

	hit := spoil(t, dataSegments(t, d.dir))
	tool(t, "fio", append(common, "--verify_only=1")...)
	d.json(&stats, "store", "stats")
	if stats.InlineRepairs == 0 {
		t.Errorf("fio met no damage: %+v", stats)
	}
	var scrub struct {
		State                         string
		SegmentsDone, Damaged, Mended uint64
	}
	d.json(&scrub, "store", "scrub", "start", "--wait")
	if scrub.State != "done" || scrub.Damaged != scrub.Mended {
		t.Errorf("scrub: %+v", scrub)
	}
	d.json(&stats, "store", "stats")
	t.Logf("%d columns hit; %+v; scrub %+v", hit, stats, scrub)
	if stats.DamageFound < uint64(hit) || stats.DamageMended != stats.DamageFound || stats.DamageLost != 0 {
		t.Errorf("%d columns were damaged: %+v", hit, stats)
	}
	tool(t, "fio", append(common, "--verify_only=1")...)
	d.stop()
	d.check()
}

// spoil damages segment files in place, spread by their length, and returns how many columns of 4 KiB that changed.
func spoil(t *testing.T, paths []string) int {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 9))
	var files []*os.File
	var ends []int64
	total := int64(0)
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		total += int64(size(t, path))
		files, ends = append(files, f), append(ends, total)
	}
	changed := map[[2]int64]bool{}
	hit := func(n int, with func(b []byte)) {
		at, i := rng.Int64N(total), 0
		for at >= ends[i] {
			i++
		}
		if i > 0 {
			at -= ends[i-1]
		}
		if n > 1 {
			at &^= int64(n - 1)
		}
		if changed[[2]int64{int64(i), at / 4096}] {
			return // a second hit could undo the first
		}
		b := make([]byte, n)
		k, _ := files[i].ReadAt(b, at)
		with(b[:k])
		if _, err := files[i].WriteAt(b[:k], at); err != nil {
			t.Fatal(err)
		}
		changed[[2]int64{int64(i), at / 4096}] = true
	}
	for range 1000 {
		hit(1, func(b []byte) { b[0] ^= byte(1 + rng.IntN(255)) })
	}
	for range 200 {
		hit(4096, func(b []byte) {
			for i := range b {
				b[i] ^= 0xa5
			}
		})
	}
	return len(changed)
}

// TestKillDuringRepair kills the daemon again and again while it scrubs and mends: what is left is whole each time, and in the end everything is mended.
func TestKillDuringRepair(t *testing.T) {
	t.Parallel() // it waits
	needs(t, "fio")
	d := startDaemon(t, "--store-parity", "8+4", "--store-keep-rate", "32MiB")
	uri := d.disk("disk", "64MiB")
	common := []string{"--name=verify", "--ioengine=nbd", "--uri=" + uri, "--size=48M", "--rw=write", "--bs=64k", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--randseed=7",
		"--refill_buffers", "--output-format=terse", "--aux-path=" + t.TempDir()}
	tool(t, "fio", append(common, "--do_verify=0")...)
	d.settle()
	d.stop()
	d.start()
	var stats struct{ GuardedBytes, UnguardedBytes, DamageLost uint64 }
	eventually(t, "parity of every sealed segment", func() bool {
		d.json(&stats, "store", "stats")
		return stats.GuardedBytes > 0 && stats.UnguardedBytes == 0
	})
	for _, path := range dataSegments(t, d.dir) {
		if n := size(t, path); n > 1<<20 {
			flip(t, path, n/3)
			flip(t, path, n/2)
		}
	}
	var scrub struct{ State string }
	d.json(&scrub, "store", "scrub", "start")
	for i := range 6 {
		time.Sleep(time.Duration(100+150*i) * time.Millisecond)
		d.kill()
		d.start()
	}
	eventually(t, "the scrub is done", func() bool {
		d.json(&scrub, "store", "scrub", "status")
		return scrub.State == "done"
	})
	tool(t, "fio", append(common, "--verify_only=1")...)
	eventually(t, "what kills left behind goes", func() bool { // parity of what the last start sealed may be in the making
		left, err := filepath.Glob(filepath.Join(d.dir, "segments", "*", "*.tmp"))
		return err == nil && len(left) == 0
	})
	d.stop()
	d.check()
}
