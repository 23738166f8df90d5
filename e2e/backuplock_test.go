package e2e

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
)

// A policy locks its backups, what is not locked any more aside: its retention puts them off, and after somebody with all keys of the storage has deleted what he can, they are brought back and are what the volume was.
func TestLockedPolicy(t *testing.T) {
	g := s3test.StartLocking(t)
	t.Setenv("AWS_REGION", "us-east-1")
	t.Setenv("AWS_ACCESS_KEY_ID", g.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", g.Secret)
	t.Setenv("HV_BACKUP_POLICIES", filepath.Join(t.TempDir(), "policies"))
	d := startDaemon(t)
	r := &repo{t: t, dir: "s3+http://" + g.Host + "/" + g.Bucket + "/vms", passwords: writeFile(t, "password", "tr0ub4dor\n")}
	r.run("repo", "init")
	data := noise(41, 36<<20)
	d.run("volume", "import", "web1", writeFile(t, "disk.raw", string(data)))
	got := execute(t, nil, backupPath, "policy", "set", "vault", "web1", "--every", "1d", "--lock", "1h", "--keep-last", "1", "--prune-every", "1d", "--repo", r.dir, "--password-file", r.passwords, "--endpoint", "unix:"+d.dir+"/hvd.sock")
	if got.code != 0 {
		t.Fatal(got.stderr)
	}
	run := func() string {
		t.Helper()
		got := execute(t, nil, backupPath, "policy", "run", "vault", "-o", "json")
		var ran []ranPolicy
		if err := json.Unmarshal([]byte(got.stdout), &ran); err != nil || got.code != 0 || len(ran) != 1 || len(ran[0].State.Backups) != 1 || ran[0].State.Damage != "" {
			t.Fatalf("policy run: %d %s%s, %v", got.code, got.stdout, got.stderr, err)
		}
		return ran[0].State.Backups[0]
	}
	first := run()
	uri := d.attach("web1")
	if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", "write -P 7 20M 256k", uri); got.code != 0 {
		t.Fatal(got.stderr)
	}
	changed := bytes.Clone(data)
	copy(changed[20<<20:], bytes.Repeat([]byte{7}, 256<<10))
	second := run()
	var list []struct {
		Name, Parent string
		LockedUntil  time.Time
	}
	r.json(&list, "list", "web1")
	if len(list) != 2 || list[1].Name != second || list[1].Parent != first || time.Until(list[0].LockedUntil) < 50*time.Minute || !list[1].LockedUntil.After(list[0].LockedUntil) {
		t.Errorf("one is to be kept, and both are locked: %+v", list)
	}
	if got := r.try("forget", first); got.code != 4 || !strings.Contains(got.stderr, "locked until") {
		t.Errorf("forget: %d %s", got.code, got.stderr)
	}
	if got := execute(t, nil, backupPath, "policy", "list"); got.code != 0 || !strings.Contains(got.stdout, "locked 1h") {
		t.Errorf("policy list: %d %s", got.code, got.stdout)
	}
	c := g.Client(t)
	var keys []string
	for info := range c.ListObjects(t.Context(), g.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		_ = c.RemoveObject(t.Context(), g.Bucket, info.Key, minio.RemoveObjectOptions{VersionID: info.VersionID, GovernanceBypass: true}) // refused for what is locked
		keys = append(keys, info.Key)
	}
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		if err := c.RemoveObject(t.Context(), g.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
			t.Error(err)
		}
	}
	if got := r.try("list"); got.code != 3 {
		t.Errorf("list, when all is hidden: %d %s%s", got.code, got.stdout, got.stderr)
	}
	r.run("repo", "repair")
	r.run("repo", "verify", "--read-data")
	if !bytes.Equal(r.restored(first), data) || !bytes.Equal(r.restored(second), changed) {
		t.Error("a locked backup is not what the volume was")
	}
}
