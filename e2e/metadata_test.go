package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestLostMetadata removes the metadata of a daemon that was killed, and what a rebuild needs of it is in the segments and the log: everything is there again, and stays.
func TestLostMetadata(t *testing.T) {
	t.Parallel() // it waits for many starts
	f := sharedFixture(t)
	d := f.copy(t)
	if err := os.RemoveAll(filepath.Join(d.dir, "meta")); err != nil {
		t.Fatal(err)
	}
	v := d.judge(f.content)
	if v.refused || v.lost > 0 {
		t.Fatalf("%+v", v)
	}
	d.says("metadata was lost")
	d.settle()
	d.kill()
	d.check()
	for i := range 2 { // damaged instead of removed, and once more behind that
		for _, path := range d.files("meta/MANIFEST-*") {
			flip(t, path, 20+i)
		}
		if v := d.judge(f.content); v.refused || v.lost > 0 {
			t.Fatalf("flip %d: %+v", i, v)
		}
		d.stop()
	}
	d.check()
	if kept := d.files("meta.damaged-*"); len(kept) != 2 {
		t.Errorf("damaged metadata is kept as %v", kept)
	}
}

// TestKillAndLoseMetadata kills hvd under writes and takes its metadata away, again and again. Everything that was replied to is there each time.
func TestKillAndLoseMetadata(t *testing.T) {
	t.Parallel() // it waits for the disk
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	d := startDaemon(t, "--store-destage-after", "200ms")
	const size, block = 32 << 20, 64 << 10
	d.disk("v", bytesText(size))
	content := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range rounds {
		c := openNBD(t, d.nbdSocket(), "v")
		for n := range 400 {
			off := rng.IntN(size/block) * block
			copy(content[off:off+block], randomBytes(i*1000+n, block))
			if err := c.write(content[off:off+block], uint64(off)); err != nil {
				t.Fatal(err)
			}
			if n == 200 && i%2 == 1 {
				d.run("snapshot", "create", fmt.Sprintf("v@s%d", i))
			}
		}
		d.kill()
		if err := os.RemoveAll(filepath.Join(d.dir, "meta")); err != nil {
			t.Fatal(err)
		}
		if v := d.judge(content); v.refused || v.lost > 0 {
			t.Fatalf("round %d: %+v", i, v)
		}
	}
	d.settle()
	d.stop()
	d.check()
}

// TestDamagedMetadataLogs kills hvd when its small log has gone round several times, so nothing but the metadata knows where most of the data lies, and damages the logs in
// which Pebble has what is newest. Every byte is there again after a start.
func TestDamagedMetadataLogs(t *testing.T) {
	t.Parallel() // it waits for destage
	flags := []string{"--store-log-cap", "64MiB", "--store-destage-after", "1s"}
	d := newDaemon(t, flags...)
	d.start()
	d.disk("v", "128MiB")
	want := make([]byte, 128<<20)
	c := openNBD(t, d.nbdSocket(), "v")
	for round := range 6 {
		for k := range 24 {
			at := (round*37 + k*5) % 128 << 20
			copy(want[at:at+1<<20], randomBytes(round*100+k, 1<<20))
			if err := c.write(want[at:at+1<<20], uint64(at)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "most of a round lies in segments", func() bool {
			var stats struct{ UndestagedBytes uint64 }
			d.json(&stats, "store", "stats")
			return stats.UndestagedBytes < 16<<20
		})
	}
	d.kill()
	logs := d.files("meta/*.log")
	slices.Sort(logs)
	newest := logs[len(logs)-1]
	zeroes := func(path string) {
		b := contents(t, path)
		clear(b[len(b)/3 : min(len(b), len(b)/3+64)])
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	empty := func(path string) {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	gone := func(path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for what, damage := range map[string]func(path string){"zeroes": zeroes, "empty": empty, "gone": gone} {
		for _, path := range slices.Compact([]string{logs[0], newest}) {
			copied := newDaemon(t, flags...)
			tool(t, "cp", "-a", "--sparse=always", d.dir+"/.", copied.dir)
			damage(filepath.Join(copied.dir, "meta", filepath.Base(path)))
			if v := copied.judge(want); v.refused || v.lost > 0 {
				t.Errorf("%s of %d logs of the metadata: %s: %+v", filepath.Base(path), len(logs), what, v)
			}
			copied.stop()
			copied.check()
		}
	}
}
