package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/synth"
)

// Published memory: so much for any store, and so much more for each TiB of unique data.
const (
	memoryBase   = 64 << 20
	memoryPerTiB = 160 << 20
)

func publishedMemory(uniqueBytes int64) int64 { return memoryBase + memoryPerTiB*(uniqueBytes>>20)>>20 }

// TestPublishedMemory opens a store of 64 GiB of unique data, of which there are rows only, with the memory that is published for it, in a cgroup that gives no page more.
// hvd serves and verifies writes, destages them, snapshots, restarts, and is not killed.
func TestPublishedMemory(t *testing.T) {
	needs(t, "fio")
	const chunk = 16 << 10
	unique := uniqueBytes(t)
	limit := publishedMemory(int64(unique))
	g, reason := newCgroup(t, limit) // before the daemon, so that it is gone when the cgroup is removed
	d := newDaemon(t)
	d.start()
	d.run("volume", "create", "bulk", "--size", bytesText(unique))
	d.stop()
	began := time.Now()
	spec := synth.Spec{Kind: synth.New, Volume: "bulk", Regions: unique / block.RegionSize, ExtentsPerRegion: block.RegionSize / chunk, ChunkBytes: chunk, Seed: 1}
	if err := synth.Write(t.Context(), d.dir, spec); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d chunks made in %.1f s", unique/chunk, time.Since(began).Seconds())

	// The bulk's segments have rows and no files: whoever made their parity would find 64 GiB lost.
	d.flags = append(d.flags, "--memory", bytesText(uint64(limit)), "--store-parity", "off")
	d.startIn(g)
	watch := d.watchMemory(g)
	job := []string{"--name=verify", "--ioengine=nbd", "--uri=" + d.disk("work", "256MiB"), "--size=256M", "--rw=randrw", "--rwmixread=30", "--bssplit=4k/60:64k/30:1m/10", "--iodepth=32",
		"--io_size=" + fioTotal(), "--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--output-format=terse", "--aux-path=" + filepath.Join(t.TempDir(), "state")}
	began = time.Now()
	tool(t, "fio", append(job, "--do_verify=1")...)
	t.Logf("fio wrote and verified %s in %.1f s", fioTotal(), time.Since(began).Seconds())
	d.run("snapshot", "create", "work@s")
	d.settle()
	tool(t, "fio", append(job, "--verify_only=1")...)
	d.run("snapshot", "delete", "work@s")
	d.settle()
	most := watch()
	d.stop()
	d.startIn(g)
	watch = d.watchMemory(g)
	tool(t, "fio", append(job, "--verify_only=1")...)
	most = max(most, watch())
	d.stop()

	const mib = 1 << 20
	if g == nil {
		t.Skipf("NOT UNDER A CGROUP, since none can be made here: %v\nanonymous memory was at most %d MiB of %d MiB", reason, most/mib, limit/mib)
	}
	t.Logf("limit %.1f MiB: at most %.1f MiB anonymous, %s", float64(limit)/mib, float64(most)/mib, g.peak())
	if kills := g.oomKills(); kills != 0 || most > limit {
		t.Errorf("%d processes were killed; anonymous memory was %d of %d MiB", kills, most/mib, limit/mib)
	}
	if strings.Contains(d.log.String(), "level=ERROR") {
		t.Errorf("hvd complains:\n%s", d.log)
	}
}

// uniqueBytes is the size of the store: 64 GiB, or so many GiB as HV_UNIQUE_GIB says, which takes a minute and 10 GB of disk for a TiB.
func uniqueBytes(t *testing.T) uint64 {
	text := os.Getenv("HV_UNIQUE_GIB")
	if text == "" {
		return 64 << 30
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		t.Fatalf("HV_UNIQUE_GIB=%s: want a number of GiB", text)
	}
	return n << 30
}

// watchMemory looks at the anonymous memory of the daemon, or of its cgroup, until the function that it returns is called, which returns the most it was.
func (d *daemon) watchMemory(g *cgroup) (stop func() int64) {
	d.t.Helper()
	status := "/proc/" + strconv.Itoa(d.pid()) + "/status"
	anonymous := func() int64 {
		if g != nil {
			n, _ := g.number("memory.stat", g.files.anon)
			return n
		}
		text, _ := os.ReadFile(status)
		if found := rssAnon.FindSubmatch(text); found != nil {
			kib, _ := strconv.ParseInt(string(found[1]), 10, 64)
			return kib << 10
		}
		return 0
	}
	most, done := int64(0), make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, anonymous())
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	})
	return func() int64 {
		d.t.Helper()
		close(done)
		running.Wait()
		if most == 0 {
			d.t.Error("the memory of hvd could not be read")
		}
		return most
	}
}
