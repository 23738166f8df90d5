package e2e

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHistoryParity damages the sealed files of a volume's history under a running daemon, headers too: an attached moment is read right, a scrub mends the rest, a start finds all of it, and what is beyond parity is named with its file, volume and times.
func TestHistoryParity(t *testing.T) {
	needs(t, "qemu-io")
	d := startDaemon(t, "--store-keep-rate", "1GiB")
	uri := d.disk("v", "64MiB")
	d.run("volume", "history", "set", "v", "--window", "1h", "--budget", "1GiB")
	random := filepath.Join(t.TempDir(), "random")
	b := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{32}).Read(b)
	if err := os.WriteFile(random, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 { // a stop seals what was filled
		qemuIO(t, uri, "write -P 1 0 32M", "write -P 2 4M 1M", "write -s "+random+" 40M 8M", "flush")
		d.stop()
		d.start()
	}
	var mark struct{ Seq uint64 }
	d.cdpJSON(&mark, "mark", "v", "one")
	qemuIO(t, uri, "write -P 3 0 64M", "flush")
	var at moment
	d.cdpJSON(&at, "attach", "v", "--at", "one")
	want := []string{"read -P 1 0 4M", "read -P 2 4M 1M", "read -P 1 5M 27M", "read -P 0 32M 8M", "read -P 0 48M 16M"}
	d.stop()
	d.start()
	files := d.historyFiles(".hist")
	eventually(t, "parity of all sealed files", func() bool { return len(d.historyFiles(".par")) == len(files) })
	for i, path := range files {
		n := int64(size(t, path))
		flipAt(t, path, []int64{20, n - 40, n / 2}[i%3]) // of the header, the footer, and between them
	}
	readOnly(t, at.URI, want...)
	var scrub struct {
		State                        string
		HistoryDone, Damaged, Mended uint64
	}
	d.json(&scrub, "store", "scrub", "start", "--wait")
	var stats struct{ DamageFound, DamageMended, DamageLost, HistoryParityBytes uint64 }
	d.json(&stats, "store", "stats")
	if scrub.State != "done" || scrub.Damaged != scrub.Mended || scrub.HistoryDone < uint64(len(files)) || stats.DamageMended < uint64(len(files)) || stats.DamageLost > 0 || stats.HistoryParityBytes == 0 {
		t.Errorf("%d files; %+v; %+v", len(files), scrub, stats)
	}
	for i, path := range files { // what an open needs
		flipAt(t, path, []int64{20, int64(size(t, path)) - 40}[i%2])
	}
	d.kill()
	d.start()
	readOnly(t, at.URI, want...)
	d.json(&scrub, "store", "scrub", "start", "--wait")
	d.stop()
	d.check()
	largest := ""
	for _, path := range d.historyFiles(".hist") {
		if largest == "" || size(t, path) > size(t, largest) {
			largest = path
		}
	}
	stripes := (int64(size(t, largest)) + 16*4096 - 1) / (16 * 4096)
	for i := range int64(3) {
		flipAt(t, largest, (1+i)*stripes*4096)
	}
	d.start()
	got := d.try("store", "scrub", "start", "--wait")
	if got.code != 1 {
		t.Errorf("a scrub with damage left ended with %d: %s", got.code, got.stderr)
	}
	got = d.try("store", "repair")
	if name := filepath.Base(largest); got.code != 1 || !strings.Contains(got.stdout, name+", history of v: 3 damaged columns, 3 beyond parity") || !strings.Contains(got.stdout, "lost at ") {
		t.Errorf("repair ended with %d:\n%s%s", got.code, got.stdout, got.stderr)
	}
	d.stop()
}

// historyFiles are the files of all histories whose names end so.
func (d *daemon) historyFiles(suffix string) []string {
	d.t.Helper()
	all, err := filepath.Glob(filepath.Join(d.dir, "history", "*", "*"+suffix))
	if err != nil {
		d.t.Fatal(err)
	}
	return all
}

// flipAt changes a byte of a file where it lies.
func flipAt(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
