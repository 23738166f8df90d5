package e2e

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// age makes all objects of the repository older.
func (r *repo) age(d time.Duration) {
	r.t.Helper()
	err := filepath.WalkDir(r.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		return os.Chtimes(path, time.Time{}, info.ModTime().Add(-d))
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// pruned is what `prune -o json` prints.
type pruned struct {
	MarkedPacks, DeletedPacks, RepackedPacks, WaitingPacks, YoungPacks int
	DeletedBytes                                                       uint64
}

func noise(seed uint64, size int) []byte {
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, size)
	_, _ = rng.Read(b)
	return b
}

// Backups are forgotten by rule and their space comes back after the grace, also when prunes are killed at any moment.
func TestPruneCommand(t *testing.T) {
	r := newRepo(t)
	data := noise(1, 48<<20)
	image := filepath.Join(t.TempDir(), "disk.raw")
	for n := range 3 { // each shares a third with the one before
		if err := os.WriteFile(image, data[n*12<<20:(n+2)*12<<20], 0o600); err != nil {
			t.Fatal(err)
		}
		r.run("run", "--file", image)
	}
	var forgot struct{ Forgotten, Kept []struct{ Name string } }
	r.json(&forgot, "forget", "--keep-last", "1", "--dry-run")
	if len(forgot.Forgotten) != 2 || len(forgot.Kept) != 1 {
		t.Errorf("forget --keep-last 1 --dry-run: %+v", forgot)
	}
	if got := r.try("forget", "--keep-tag", "x"); got.code != 2 || !strings.Contains(got.stderr, "--all-others") {
		t.Errorf("forget --keep-tag alone: %d %s", got.code, got.stderr)
	}
	r.json(&forgot, "forget", "--keep-tag", "x", "--all-others", "--dry-run")
	if len(forgot.Forgotten) != 3 {
		t.Errorf("forget --keep-tag x --all-others --dry-run: %+v", forgot)
	}
	r.run("forget", "--keep-last", "1")
	if got := r.try("prune", "--grace", "1h"); got.code != 2 {
		t.Errorf("a grace of 1h: %d %s", got.code, got.stderr)
	}
	var got pruned
	r.json(&got, "prune")
	if got.MarkedPacks != 0 || got.YoungPacks == 0 {
		t.Errorf("young packs are not left alone: %+v", got)
	}
	whole := packBytes(t, r)
	for round := 0; round < 6; round++ {
		r.age(13 * time.Hour)
		r.killPrune(time.Duration(round) * 15 * time.Millisecond)
		r.run("repo", "verify", "--read-data")
	}
	r.age(25 * time.Hour)
	r.run("prune")
	r.age(25 * time.Hour)
	r.run("prune")
	if left := packBytes(t, r); left > whole*3/4 || left < 24<<20 {
		t.Errorf("of %d B of packs %d are left for a backup of %d", whole, left, 24<<20)
	}
	if !bytes.Equal(r.restored("latest"), data[24<<20:]) {
		t.Error("the backup that is left differs from what was backed up")
	}
	r.run("forget", "latest")
	r.run("prune", "--alone")
	if left := packBytes(t, r); left != 0 {
		t.Errorf("without a backup %d B are left", left)
	}
}

// killPrune kills a prune after some time, if it has not ended by then.
func (r *repo) killPrune(after time.Duration) {
	r.t.Helper()
	cmd := exec.Command(backupPath, r.args("prune", "--grace", "12h")...)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	time.Sleep(200*time.Millisecond + after) // the passphrase costs about that
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
}

func packBytes(t *testing.T, r *repo) (n int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(r.dir, "packs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}
