package e2e

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// noiseImage is an image of random bytes.
func noiseImage(t *testing.T, seed uint64, size int) (path string, data []byte) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	data = make([]byte, size)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return writeFile(t, "disk.raw", string(data)), data
}

// TestStoreIsRepairedFromBackups damages segments of a running daemon by more than parity reaches. What is lost comes back from a backup of the volume, to volume, snapshot and clone, and is read right after; a backup of
// other bytes by the same name changes nothing.
func TestStoreIsRepairedFromBackups(t *testing.T) {
	d, r, wrong := startDaemon(t, "--store-parity", "16+2", "--store-keep-rate", "1GiB"), newRepo(t), newRepo(t)
	endpoint := func(d *daemon) string { return "unix:" + d.dir + "/hvd.sock" }
	image, data := noiseImage(t, 1, 24<<20)
	d.run("volume", "import", "web1", image)
	d.run("snapshot", "create", "web1@before")
	r.run("run", "web1", "--endpoint", endpoint(d))
	another := startDaemon(t)
	others, _ := noiseImage(t, 2, 24<<20)
	another.run("volume", "import", "web1", others)
	wrong.run("run", "web1", "--endpoint", endpoint(another))
	another.stop()
	d.settle()
	d.stop() // what is open now is sealed by the next start
	d.start()
	var stats struct{ GuardedBytes, UnguardedBytes uint64 }
	eventually(t, "parity of every sealed segment", func() bool {
		d.json(&stats, "store", "stats")
		return stats.GuardedBytes > 0 && stats.UnguardedBytes == 0
	})
	d.attach("web1")
	d.attach("web1@before")
	mustHold(t, d, "web1", data)
	for _, path := range dataSegments(t, d.dir) {
		columns := (size(t, path) + 4095) / 4096
		for i := range 3 { // one more of a stripe than parity has, unless the segment is small
			if at := (i*4*((columns+15)/16)+7)*4096 + 9; at < size(t, path)-4096 {
				flip(t, path, at)
			}
		}
	}
	var scrub struct {
		State           string
		Damaged, Mended uint64
	}
	d.try("store", "scrub", "start", "--wait") // it ends with an error, as not all is mended
	d.json(&scrub, "store", "scrub", "status")
	if scrub.Damaged == scrub.Mended {
		t.Fatalf("nothing is beyond parity: %+v", scrub)
	}
	got := execute(t, nil, backupPath, r.args("repair-store", "--dry-run", "--endpoint", endpoint(d))...)
	if got.code != 5 || !strings.Contains(got.stdout, "web1@before") {
		t.Errorf("a dry run ends with %d and says %q, %q", got.code, got.stdout, got.stderr)
	}
	var out struct{ Lost, Healed, Refused int }
	got = wrong.try("repair-store", "--endpoint", endpoint(d))
	if got.code != 5 || !strings.Contains(got.stdout, " 0 of them mended") {
		t.Errorf("from a backup of other bytes it ends with %d and says %q, %q", got.code, got.stdout, got.stderr)
	}
	r.json(&out, "repair-store", "--endpoint", endpoint(d))
	if out.Lost == 0 || out.Healed != out.Lost {
		t.Errorf("it did %+v", out)
	}
	mustHold(t, d, "web1", data)
	mustHold(t, d, "web1@before", data)
	d.run("store", "repair")
	r.json(&out, "repair-store", "--endpoint", endpoint(d))
	if out.Lost != 0 {
		t.Errorf("after all that %+v", out)
	}
	d.stop()
	d.start()
	mustHold(t, d, "web1", data)
}

// TestRepositoryIsRepairedFromAVolume damages a pack of a repository; what it held comes from the volume that was backed up, and prune removes the damaged one.
func TestRepositoryIsRepairedFromAVolume(t *testing.T) {
	d, r := startDaemon(t), newRepo(t)
	image, data := noiseImage(t, 3, 20<<20)
	d.run("volume", "import", "web1", image)
	r.run("run", "web1", "--endpoint", "unix:"+d.dir+"/hvd.sock")
	var packs []string
	err := filepath.WalkDir(filepath.Join(r.dir, "packs"), func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			packs = append(packs, path)
		}
		return err
	})
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	for _, path := range packs {
		if n := size(t, path); n > 4<<20 {
			for i := range 40 { // more than tags can correct
				flip(t, path, n/3+i)
				flip(t, path, n/2+i)
			}
		}
	}
	if got := r.try("repo", "verify", "--read-data"); got.code != 5 {
		t.Fatalf("verify ends with %d: %s", got.code, got.stderr)
	}
	if got := r.try("repo", "repair", "--dry-run", "--from-volume", "web1", "--endpoint", "unix:"+d.dir+"/hvd.sock"); got.code != 5 || !strings.Contains(got.stdout, "would mend") {
		t.Errorf("a dry run ends with %d and says %q, %q", got.code, got.stdout, got.stderr)
	}
	if got := r.try("repo", "repair"); got.code != 5 || !strings.Contains(got.stdout, "lost") {
		t.Errorf("without a source it ends with %d and says %q, %q", got.code, got.stdout, got.stderr)
	}
	said := r.run("repo", "repair", "--from-volume", "web1", "--endpoint", "unix:"+d.dir+"/hvd.sock")
	if !strings.Contains(said, "from web1") {
		t.Errorf("it says %q", said)
	}
	r.run("repo", "verify", "--read-data")
	if string(r.restored("latest:web1")) != string(data) {
		t.Error("the backup restores other bytes")
	}
	r.run("prune", "--alone")
	r.run("repo", "verify", "--read-data")
	var snapshots []struct{ Name string }
	d.json(&snapshots, "snapshot", "list", "web1")
	for _, s := range snapshots {
		if strings.HasPrefix(s.Name, "repair-") {
			t.Errorf("snapshot %s of the repair is there still", s.Name)
		}
	}
}
