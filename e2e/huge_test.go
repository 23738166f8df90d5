package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/synth"
)

// A volume of 2 TiB with 20 million extents.
const (
	hugeRegions          = 2 << 40 / block.RegionSize
	hugeExtentsPerRegion = 153
	hugeChunks           = 64 << 20 / block.Size // that the extents refer to
)

// hugeStats is what of the statistics tells how far space has come back.
type hugeStats struct{ NonZeroBytes, UniqueBytes, StoredBytes, HeldUnusedBytes uint64 }

func (d *daemon) hugeStats() (s hugeStats) {
	d.t.Helper()
	d.json(&s, "store", "stats")
	return s
}

// TestHugeVolume gives up 20 million extents in two ways. They are made once, which takes longer than a copy of them.
func TestHugeVolume(t *testing.T) {
	made := hugeStore(t)
	for _, c := range []struct {
		name   string
		giveUp func(t *testing.T, d *daemon)
	}{
		{"delete", deleteHugeVolume},
		{"trim", trimHugeVolume},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDaemon(t, made.flags...)
			tool(t, "cp", "-a", "--sparse=always", made.dir+"/.", d.dir)
			d.start()
			d.mustDetach("seed")
			d.run("volume", "delete", "seed", "--yes")
			c.giveUp(t, d)
		})
	}
}

// hugeStore returns a daemon, which does not run, on a store with the volume "huge", whose extents share chunks that really exist and that nothing but the volume "seed" refers to.
func hugeStore(t *testing.T) *daemon {
	t.Helper()
	regions := uint64(hugeRegions)
	if testing.Short() {
		regions /= 16
	}
	d := newDaemon(t, "--store-log-cap", "256MiB", "--store-destage-after", "100ms")
	d.start()
	d.disk("seed", bytesText(hugeChunks*block.Size), "--chunking", "fixed:4KiB")
	c := openNBD(t, d.nbdSocket(), "seed")
	for off := 0; off < hugeChunks*block.Size; off += 1 << 20 {
		if err := c.write(randomBytes(off>>20, 1<<20), uint64(off)); err != nil {
			t.Fatal(err)
		}
	}
	c.conn.Close()
	d.settle()
	d.run("volume", "create", "huge", "--size", bytesText(hugeRegions*block.RegionSize))
	d.stop()
	began := time.Now()
	spec := synth.Spec{Kind: synth.Shared, Volume: "huge", Regions: regions, ExtentsPerRegion: hugeExtentsPerRegion}
	spec.RegionsAlike = (regions*hugeExtentsPerRegion + hugeChunks - 1) / hugeChunks
	if err := synth.Write(t.Context(), d.dir, spec); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d extents made in %.1f s", regions*hugeExtentsPerRegion, time.Since(began).Seconds())
	return d
}

// deleteHugeVolume deletes 20 million extents: the command returns at once, and space comes back in the background, across a kill.
func deleteHugeVolume(t *testing.T, d *daemon) {
	before := d.hugeStats()
	began := time.Now()
	d.run("volume", "delete", "huge", "--yes")
	t.Logf("volume delete, whole command: %s", time.Since(began))
	d.spaceComesBack(before)
}

// trimHugeVolume trims 20 million extents with the requests that clients make, and checks that all of it reads as zeroes from then on.
func trimHugeVolume(t *testing.T, d *daemon) {
	before := d.hugeStats()
	d.attach("huge")
	c := openNBD(t, d.nbdSocket(), "huge")
	// QEMU's longest request, and the longest that fits 32 bits with 4 KiB left over, so that none but the first begins at a region's border.
	for _, length := range []uint64{2 << 30, 4<<30 - block.Size} {
		var each []time.Duration
		began := time.Now()
		for off := uint64(0); off < c.size; off += length {
			sent := time.Now()
			if err := c.trim(off, int(min(length, c.size-off))); err != nil {
				t.Fatal(err)
			}
			each = append(each, time.Since(sent))
		}
		whole := time.Since(began)
		slices.Sort(each)
		t.Logf("trim of 2 TiB in %d requests of %d B: %s; one: median %s, most %s", len(each), length, whole, each[len(each)/2], each[len(each)-1])
	}
	p := make([]byte, 1<<20)
	for _, off := range []uint64{0, 1 << 40, hugeRegions*block.RegionSize/16 - 1<<20, c.size - 1<<20} {
		if err := c.read(p, off); err != nil || !allZero(p) {
			t.Errorf("at %d after the trim: %v, or other bytes than zeroes", off, err)
		}
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	c.conn.Close()
	d.spaceComesBack(before)
}

func allZero(p []byte) bool { return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) }

// spaceComesBack kills the daemon when a part of the space is back, and wants all of it back in the next life, with a store without fault.
func (d *daemon) spaceComesBack(before hugeStats) {
	t := d.t
	t.Helper()
	began := time.Now()
	now := d.hugeStats()
	for now.UniqueBytes > before.UniqueBytes/4*3 && time.Since(began) < patience {
		time.Sleep(20 * time.Millisecond)
		now = d.hugeStats()
	}
	t.Logf("killed after %.1f s, with %d of %d MiB of chunks left", time.Since(began).Seconds(), now.UniqueBytes>>20, before.UniqueBytes>>20)
	if now.UniqueBytes > before.UniqueBytes/4*3 || now.UniqueBytes == 0 {
		t.Errorf("before %+v, when killed %+v: that is not the middle", before, now)
	}
	d.kill()
	d.start()
	if now = d.hugeStats(); now.UniqueBytes == 0 {
		t.Errorf("nothing was left to do after the kill: %+v", now)
	}
	began = time.Now()
	for now.NonZeroBytes+now.UniqueBytes+now.StoredBytes > 0 && time.Since(began) < patience {
		time.Sleep(20 * time.Millisecond)
		now = d.hugeStats()
	}
	t.Logf("all of it back %.1f s after the restart", time.Since(began).Seconds())
	// What is left is the segment that is being written to.
	if now.NonZeroBytes+now.UniqueBytes+now.StoredBytes > 0 || now.HeldUnusedBytes > 64<<20 {
		t.Errorf("space does not come back: %+v", now)
	}
	d.stop()
	d.check()
}
