package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// repo is a backup repository and the file with its passphrase.
type repo struct {
	t              *testing.T
	dir, passwords string
	flags          []string // beside these
	env            []string // variables of its commands, beside those of this process
}

func newRepo(t *testing.T) *repo {
	t.Helper()
	r := &repo{t: t, dir: filepath.Join(t.TempDir(), "repo"), passwords: writeFile(t, "password", "tr0ub4dor\n")}
	r.run("repo", "init")
	return r
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (r *repo) args(args ...string) []string {
	args = append(args, "--repo", r.dir)
	if r.passwords != "" {
		args = append(args, "--password-file", r.passwords)
	}
	return append(args, r.flags...)
}

func (r *repo) try(args ...string) result {
	r.t.Helper()
	return executeWith(r.t, r.env, nil, backupPath, r.args(args...)...)
}

func (r *repo) run(args ...string) string {
	r.t.Helper()
	got := r.try(args...)
	if got.code != 0 {
		r.t.Fatalf("hv-backup %s ended with %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
	return got.stdout
}

// backedUp is what `run -o json` and `list -o json` print.
type backedUp struct {
	Backup, Name           string
	NewBytes, NonZeroBytes uint64
	Tags                   []string
}

func (r *repo) json(into any, args ...string) {
	r.t.Helper()
	text := r.run(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(text), into); err != nil {
		r.t.Fatalf("hv-backup %s prints no JSON: %v\n%s", strings.Join(args, " "), err, text)
	}
}

// restored returns the content of a backup.
func (r *repo) restored(name string) []byte {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "restored.raw")
	r.run("restore", name, "--to-file", path)
	data, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

// Volumes of a running hvd and images go into one repository, share what they have in common, and come back as they were.
func TestBackups(t *testing.T) {
	d, r := startDaemon(t), newRepo(t)
	data := make([]byte, 40<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(data)/2; i++ {
		data[i] = byte(rng.Uint32())
	}
	image := writeFile(t, "disk.raw", string(data))
	d.run("volume", "import", "web1", image)
	d.run("snapshot", "create", "web1@before")
	var first, second, third backedUp
	r.json(&first, "run", "web1", "--tag", "daily", "--endpoint", "unix:"+d.dir+"/hvd.sock")
	if first.NonZeroBytes < 20<<20 || first.NewBytes != first.NonZeroBytes {
		t.Errorf("the first backup is %+v", first)
	}
	uri := d.attach("web1")
	if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", "write -P 7 30M 64k", uri); got.code != 0 {
		t.Fatal(got.stderr)
	}
	changed := bytes.Clone(data)
	copy(changed[30<<20:], bytes.Repeat([]byte{7}, 64<<10))
	r.json(&second, "run", "web1", "--endpoint", "unix:"+d.dir+"/hvd.sock")
	if second.NewBytes == 0 || second.NewBytes > 1<<20 {
		t.Errorf("64 KiB were written, and the backup has %d new bytes", second.NewBytes)
	}
	r.json(&third, "run", "--file", image)
	if third.NewBytes != 0 {
		t.Errorf("%d bytes of the image are new, which the volume was made of", third.NewBytes)
	}
	if !bytes.Equal(r.restored(first.Backup), data) || !bytes.Equal(r.restored("latest:web1"), changed) || !bytes.Equal(r.restored(third.Backup), data) {
		t.Error("a backup differs from what was backed up")
	}
	var list []backedUp
	r.json(&list, "list", "web1", "--tag", "daily")
	if len(list) != 1 || list[0].Name != first.Backup {
		t.Errorf("with the tag there are %+v", list)
	}
	r.run("repo", "verify", "--read-data")
	if got := r.run("repo", "stats"); !strings.Contains(got, "backups") {
		t.Errorf("stats say %q", got)
	}
	r.run("forget", first.Backup)
	if got := r.try("show", first.Backup); got.code != 3 {
		t.Errorf("a forgotten backup is shown: %d %s", got.code, got.stderr)
	}
}

// What goes wrong says what, with the right exit code.
func TestBackupRefusals(t *testing.T) {
	r := newRepo(t)
	noise := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	image := writeFile(t, "disk.raw", string(noise))
	r.run("run", "--file", image)
	wrong := writeFile(t, "password", "wrong\n")
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{4, "wrong passphrase", []string{"list", "--password-file", wrong}},
		{3, "no repository", []string{"list", "--repo", t.TempDir(), "--password-file", r.passwords}},
		{4, "holds a repository already", []string{"repo", "init", "--repo", r.dir, "--password-file", r.passwords}},
		{3, `\x1b[31mred`, []string{"list", "--repo", "\x1b[31mred", "--password-file", r.passwords}},
		{2, "no passphrase", []string{"list", "--repo", r.dir}},
		{2, "no repository", []string{"list"}},
		{3, "not found", []string{"show", "2001", "--repo", r.dir, "--password-file", r.passwords}},
		{4, "already exists", []string{"restore", "latest", "--to-file", image, "--repo", r.dir, "--password-file", r.passwords}},
		{2, "unknown command", []string{"frobnicate"}},
	} {
		if c.args[0] == "list" && len(c.args) == 3 && c.args[2] == wrong {
			c.args = append(c.args, "--repo", r.dir)
		}
		got := execute(t, nil, backupPath, c.args...)
		if got.code != c.code || !strings.Contains(got.stderr, c.says) || got.stdout != "" {
			t.Errorf("hv-backup %s: %d, %q; want %d and %q", strings.Join(c.args, " "), got.code, got.stderr, c.code, c.says)
		}
	}
	var pack string
	_ = filepath.WalkDir(filepath.Join(r.dir, "packs"), func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			pack = path
		}
		return err
	})
	f, err := os.OpenFile(pack, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("damage"), 300_000)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := r.try("repo", "verify", "--read-data"); got.code != 5 || !strings.Contains(got.stdout, filepath.Base(pack)) {
		t.Errorf("verify of a damaged pack: %d, %s%s", got.code, got.stdout, got.stderr)
	}
	target := filepath.Join(t.TempDir(), "restored.raw")
	if got := r.try("restore", "latest", "--to-file", target); got.code != 5 {
		t.Errorf("restore from a damaged pack: %d, %s", got.code, got.stderr)
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("a restore that failed left its file")
	}
}

// A run that is killed leaves all that was there, and the next one need not store again what it stored.
func TestBackupKilled(t *testing.T) {
	r := newRepo(t)
	data := make([]byte, 96<<20)
	rng := rand.New(rand.NewPCG(5, 6))
	for i := 0; i < len(data); i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			data[i+j] = byte(v >> (8 * j))
		}
	}
	image := writeFile(t, "disk.raw", string(data))
	small := writeFile(t, "small.raw", "a small image")
	var before backedUp
	r.json(&before, "run", "--file", small)
	packs := func() int {
		found, _ := filepath.Glob(filepath.Join(r.dir, "packs", "*", "*"))
		return len(found)
	}
	cmd := exec.Command(backupPath, r.args("run", "--file", image)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); packs() < 3 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
	if packs() < 3 {
		t.Fatalf("only %d packs", packs())
	}
	var after backedUp
	r.json(&after, "run", "--file", image)
	if after.NewBytes > after.NonZeroBytes*3/4 && after.NewBytes != 0 {
		t.Errorf("of %d bytes the run after the kill stores %d again", after.NonZeroBytes, after.NewBytes)
	}
	if !bytes.Equal(r.restored(after.Backup), data) || string(r.restored(before.Backup)) != "a small image" {
		t.Error("a backup differs from what was backed up")
	}
	r.run("repo", "verify", "--read-data")
}
