package e2e

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
)

// A repository lives in object storage as in a directory.
func TestBackupsInObjectStorage(t *testing.T) {
	g := s3test.Start(t)
	t.Setenv("AWS_REGION", "us-east-1")
	r := &repo{t: t, dir: "s3+http://" + g.Host + "/" + g.Bucket + "/vms", passwords: writeFile(t, "password", "tr0ub4dor\n")}
	t.Setenv("HOME", t.TempDir())
	if got := r.try("repo", "init"); got.code != 2 || !strings.Contains(got.stderr, "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %d, %s", got.code, got.stderr)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", g.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if got := r.try("repo", "init"); got.code != 4 || strings.Contains(got.stderr, "wrong") {
		t.Errorf("with wrong credentials: %d, %s", got.code, got.stderr)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", g.Secret)
	r.run("repo", "init")
	data := noise(3, 20<<20)
	r.run("run", "--file", writeFile(t, "disk.raw", string(data)))
	if !bytes.Equal(r.restored("latest"), data) {
		t.Error("the backup differs from what was backed up")
	}
	r.run("repo", "verify", "--read-data")
	r.run("forget", "latest")
	var got pruned
	if r.json(&got, "prune", "--alone"); got.DeletedPacks != 2 {
		t.Errorf("a prune without a backup: %+v", got)
	}
	if got := r.try("repo", "init"); got.code != 4 {
		t.Errorf("a second repository in the same place: %d, %s", got.code, got.stderr)
	}
}
