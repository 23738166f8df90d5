package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// heldBytes is what lies in a repository of a host, and how many files of objects that are not complete.
func (h *repositoryHost) heldBytes(name string) (bytes uint64, halves int) {
	h.t.Helper()
	root := filepath.Join(h.folder, name)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if strings.HasPrefix(path, filepath.Join(root, "tmp")) {
			halves++
		}
		info, err := e.Info()
		if err == nil {
			bytes += uint64(info.Size())
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return bytes, halves
}

// A backup that does not fit into the quota of its repository, or of its client, ends with a text that says so, and leaves no half of anything. repo stats, status and metrics show what is taken; a prune of the full repository gives room.
func TestBackupHostQuota(t *testing.T) {
	const quota = 30 << 20
	h := startRepositoryHost(t, "admin=all,web1=append:vms,web1=read:vms,web1=all:own", "--repository-quotas", "vms=30MiB", "--repository-peer-quotas", "web1=20MiB")
	passwords := writeFile(t, "password", "x\n")
	as := func(name, repository string) *repo {
		return &repo{t: t, dir: "hvd://" + h.listen + "/" + repository, passwords: passwords, flags: h.certificates(h.authority, name)}
	}
	admin, web1 := as("admin", "vms"), as("web1", "vms")
	admin.run("repo", "init")
	var first backedUp
	admin.json(&first, "run", "--file", writeFile(t, "a.raw", string(randomImage(1, 12<<20))))
	got := admin.try("run", "--file", writeFile(t, "b.raw", string(randomImage(2, 40<<20))))
	if got.code != 1 || !strings.Contains(got.stderr, "repository.quotas") || !strings.Contains(got.stderr, "30.0 MiB") {
		t.Fatalf("40 MiB beside 12 of 30: %d %s", got.code, got.stderr)
	}
	held, halves := h.heldBytes("vms")
	if held > quota || halves > 0 {
		t.Errorf("%d B are there, %d halves of objects", held, halves)
	}
	var stats struct{ UsedBytes, QuotaBytes, PeerUsedBytes, PeerQuotaBytes uint64 }
	if admin.json(&stats, "repo", "stats"); stats.UsedBytes != held || stats.QuotaBytes != quota || stats.PeerQuotaBytes != 0 {
		t.Errorf("stats says %+v, and there are %d B", stats, held)
	}
	if text := admin.run("repo", "stats"); !strings.Contains(text, "of 30.0 MiB") {
		t.Errorf("stats says %s", text)
	}
	h.kill()
	h.start()
	if again, _ := h.heldBytes("vms"); again != held {
		t.Errorf("after a kill %d B are there, and not %d", again, held)
	}
	if got := admin.try("run", "--file", writeFile(t, "c.raw", string(randomImage(3, 40<<20)))); !strings.Contains(got.stderr, "repository.quotas") {
		t.Errorf("after a kill: %d %s", got.code, got.stderr)
	}
	admin.run("prune", "--alone") // what the run that failed has left is needed by none
	admin.run("prune", "--alone")
	before := stats.UsedBytes
	if admin.json(&stats, "repo", "stats"); stats.UsedBytes >= before || stats.UsedBytes < 12<<20 {
		t.Errorf("after a prune %d B are there of %d", stats.UsedBytes, before)
	}
	web1.run("run", "--file", writeFile(t, "d.raw", string(randomImage(4, 10<<20))))
	admin.run("repo", "verify", "--read-data")

	own := as("web1", "own")
	own.run("repo", "init")
	if got := own.try("run", "--file", writeFile(t, "e.raw", string(randomImage(5, 14<<20)))); got.code != 1 || !strings.Contains(got.stderr, "repository.peer-quotas") {
		t.Errorf("14 MiB beside the 10 of 20 that the client has elsewhere: %d %s", got.code, got.stderr)
	}
	stats.UsedBytes, stats.QuotaBytes = 0, 0
	if own.json(&stats, "repo", "stats"); stats.QuotaBytes != 0 || stats.PeerQuotaBytes != 20<<20 || stats.PeerUsedBytes < 10<<20 || stats.PeerUsedBytes > 20<<20 {
		t.Errorf("stats says %+v", stats)
	}
	if _, halves := h.heldBytes("own"); halves > 0 {
		t.Errorf("%d halves of objects are left", halves)
	}
	metrics := execute(t, nil, "curl", "-s", "--unix-socket", h.dir+"/hvd.sock", "http://hvd/metrics").stdout
	for _, want := range []string{`hv_repository_used_bytes{repository="vms"} `, `hv_repository_quota_bytes{repository="vms"} 3.145728e+07`, `hv_repository_peer_quota_bytes{peer="web1"} 2.097152e+07`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics do not have %s", want)
		}
	}
	if !strings.Contains(h.log.String(), "repository.quotas") {
		t.Error("the log does not say that a quota was met")
	}
	if err := os.RemoveAll(filepath.Join(h.folder, "own")); err != nil {
		t.Fatal(err)
	}
	newDaemon(t, "--repository-quotas", "vms").refusesToStart(2, "repository.quotas")
}
