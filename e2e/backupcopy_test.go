package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
)

// copied is what `copy -o json` prints.
type copied struct {
	Backups []struct {
		From, To string
		NewBytes uint64
		Present  bool
	}
}

// Backups go from a directory to object storage and back, each once, and a copy that is killed goes on.
func TestBackupCopy(t *testing.T) {
	g := s3test.Start(t)
	t.Setenv("HV_TO_AWS_REGION", "us-east-1")
	t.Setenv("HV_TO_AWS_ACCESS_KEY_ID", g.Access)
	t.Setenv("HV_TO_AWS_SECRET_ACCESS_KEY", g.Secret)
	here := newRepo(t)
	remote := &repo{t: t, dir: "s3+http://" + g.Host + "/" + g.Bucket + "/vms", passwords: writeFile(t, "password", "another one\n")}
	withRemote := func(do func()) { // as the repository of all commands
		t.Setenv("AWS_REGION", "us-east-1")
		t.Setenv("AWS_ACCESS_KEY_ID", g.Access)
		t.Setenv("AWS_SECRET_ACCESS_KEY", g.Secret)
		do()
		t.Setenv("AWS_ACCESS_KEY_ID", "")
	}
	withRemote(func() { remote.run("repo", "init") })
	data := noise(9, 24<<20)
	changed := bytes.Clone(data)
	copy(changed[3<<20:], noise(10, 1<<20))
	image := filepath.Join(t.TempDir(), "disk.raw")
	for _, content := range [][]byte{data, changed} {
		if err := os.WriteFile(image, content, 0o600); err != nil {
			t.Fatal(err)
		}
		here.run("run", "--file", image, "--tag", map[bool]string{true: "first", false: "second"}[bytes.Equal(content, data)])
	}
	to := []string{"--to", remote.dir, "--to-password-file", remote.passwords}
	var got copied
	here.json(&got, append(to, "copy", "--dry-run", "--tag", "first")...)
	if len(got.Backups) != 1 || got.Backups[0].To != "" || got.Backups[0].Present {
		t.Errorf("a dry run: %+v", got)
	}
	cmd := exec.Command(backupPath, here.args(append(to, "copy")...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(700 * time.Millisecond) // two passphrases cost about half of it
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
	here.json(&got, append(to, "copy")...)
	if len(got.Backups) != 2 || got.Backups[0].To == "" || got.Backups[1].To == "" || !got.Backups[1].Present && got.Backups[1].NewBytes > 3<<20 {
		t.Errorf("the copy after the kill: %+v", got)
	}
	here.json(&got, append(to, "copy")...)
	if !got.Backups[0].Present || !got.Backups[1].Present {
		t.Errorf("what was copied is copied again: %+v", got)
	}
	withRemote(func() {
		remote.run("repo", "verify", "--read-data")
		if !bytes.Equal(remote.restored(got.Backups[0].To), data) || !bytes.Equal(remote.restored("latest"), changed) {
			t.Error("a copy differs from what was backed up")
		}
	})
	usb := newRepo(t)
	withRemote(func() {
		t.Setenv("HV_TO_AWS_ACCESS_KEY_ID", "")
		remote.run("copy", "latest", "--to", usb.dir, "--to-password-file", usb.passwords)
	})
	if !bytes.Equal(usb.restored("latest"), changed) {
		t.Error("a copy of a copy differs from what was backed up")
	}
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{2, "give --to", []string{"copy"}},
		{2, "not both", []string{"copy", "latest", "--tag", "x", "--to", usb.dir}},
		{2, "both are repository", []string{"copy", "--to", here.dir}},
		{3, "--to: ", []string{"copy", "--to", t.TempDir()}},
	} {
		if got := here.try(c.args...); got.code != c.code || !strings.Contains(got.stderr, c.says) {
			t.Errorf("%v: %d %s", c.args, got.code, got.stderr)
		}
	}
}
