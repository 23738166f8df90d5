package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/minio/minio-go/v7"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
)

// newVault is a repository in a bucket with object lock.
func newVault(t *testing.T) (*place, *s3test.Gateway) {
	t.Helper()
	g := s3test.StartLocking(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t, "s3+http://" + g.Host + "/" + g.Bucket + "/vms", filepath.Join(t.TempDir(), "identity"), map[string]string{"AWS_ACCESS_KEY_ID": g.Access, "AWS_SECRET_ACCESS_KEY": g.Secret, "AWS_REGION": "us-east-1"}}
	if err := os.WriteFile(p.identity, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.ends(exitDone, "", "repo", "init", "--recipient", id.Recipient().String())
	return p, g
}

// lockedRun is a backup as run says it.
type lockedRun struct {
	Backup      string
	LockedUntil time.Time
}

// lockFile backs up a file, locked for so long.
func (p *place) lockFile(path, lock string) (m lockedRun) {
	p.t.Helper()
	if err := json.Unmarshal([]byte(p.ends(exitDone, "", "run", "--file", path, "--lock", lock, "-o", "json")), &m); err != nil {
		p.t.Fatal(err)
	}
	return m
}

// A locked backup says so, cannot be forgotten, and is not given up by whoever deletes everything in the bucket.
func TestLock(t *testing.T) {
	p, g := newVault(t)
	data := bytes.Repeat([]byte("what matters, and more of it; "), 20_000)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	loose := p.backUp(1)
	before := time.Now()
	locked := p.lockFile(path, "1h")
	if d := locked.LockedUntil.Sub(before); d < time.Hour || d > time.Hour+time.Minute {
		t.Errorf("locked for %v", d)
	}
	shown := locked.LockedUntil.Local().Format(time.DateTime)
	for _, command := range []string{"list", "show " + locked.Backup} {
		if out := p.ends(exitDone, "", strings.Fields(command)...); !strings.Contains(out, shown) {
			t.Errorf("%s says\n%s\nand not %s", command, out, shown)
		}
	}
	var one struct{ LockedUntil time.Time }
	if err := json.Unmarshal([]byte(p.ends(exitDone, "", "show", locked.Backup, "-o", "json")), &one); err != nil || !one.LockedUntil.Equal(locked.LockedUntil) {
		t.Errorf("show says %+v, want %v, error %v", one, locked.LockedUntil, err)
	}
	p.ends(exitRefused, "locked until "+shown+"; nothing is forgotten", "forget", loose, locked.Backup)
	for _, dry := range []string{"--dry-run=true", "--dry-run=false"} {
		out := p.ends(exitDone, "", "forget", "--keep-tag", "none", "--all-others", dry)
		if !strings.Contains(out, "keep "+locked.Backup) || !strings.Contains(out, "it is locked until "+shown) || !strings.Contains(out, "forg") {
			t.Errorf("forget %s says\n%s", dry, out)
		}
	}
	if out := p.ends(exitDone, "", "list"); strings.Contains(out, loose) || !strings.Contains(out, locked.Backup) {
		t.Errorf("there are\n%s", out)
	}
	p.ends(exitDone, "", "prune", "--alone")
	p.ends(exitDone, "", "repo", "verify", "--read-data")
	c := g.Client(t)
	for info := range c.ListObjects(t.Context(), g.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		_ = c.RemoveObject(t.Context(), g.Bucket, info.Key, minio.RemoveObjectOptions{VersionID: info.VersionID, GovernanceBypass: true})
		if err := c.RemoveObject(t.Context(), g.Bucket, info.Key, minio.RemoveObjectOptions{}); err != nil {
			t.Error(err)
		}
	}
	p.ends(exitNotFound, "no repository", "list")
	p.ends(exitDamaged, "has deleted it", "repo", "verify")
	p.ends(exitDamaged, "`hv-backup repo repair` brings them back", "repo", "repair", "--dry-run")
	p.ends(exitDone, "is back", "repo", "repair")
	p.ends(exitDone, "", "repo", "verify", "--read-data")
	rubbish := strings.Repeat("rubbish ", 100)
	for _, key := range []string{"marks/20261130t000000z-00000000", "index/" + strings.Repeat("0", 64), "packs/00/" + strings.Repeat("0", 64), "manifests/20991130t000000z-00000000", "keys/" + strings.Repeat("0", 32)} {
		o := minio.PutObjectOptions{DisableMultipart: true, SendContentMd5: true, Mode: minio.Compliance, RetainUntilDate: time.Now().Add(time.Hour)}
		if _, err := c.PutObject(t.Context(), g.Bucket, "vms/"+key, strings.NewReader(rubbish), int64(len(rubbish)), o); err != nil {
			t.Fatal(err)
		}
	}
	p.ends(exitRefused, "manifests/20991130t000000z-00000000 is locked", "forget", "20991130t000000z-00000000")
	back := filepath.Join(t.TempDir(), "restored.raw")
	p.ends(exitDone, "", "restore", locked.Backup, "--to-file", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the backup restores other bytes, %v", err)
	}
}

// What a repair mends of a locked backup is locked when it ends, and it says so; whoever then deletes everything in the bucket does not undo it.
func TestLockedRepair(t *testing.T) {
	p, g := newVault(t)
	data := []byte(strings.Repeat("what matters, and a disk that does not know it; ", 50_000))
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	locked := p.lockFile(path, "1h")
	packs, err := filepath.Glob(filepath.Join(g.Root, g.Bucket, "vms/packs/*/*"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("there are %v, %v", packs, err)
	}
	f, err := os.OpenFile(packs[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{0x5a}, 100), 2000) // in the first frame
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	p.ends(exitDamaged, "damage was found", "repo", "verify", "--read-data")
	if out := p.ends(exitDone, "", "repo", "repair", "--from-file", path); !strings.Contains(out, "1 object of locked backups not locked as long as these; 2 locked for that") {
		t.Errorf("repair says\n%s", out)
	}
	p.ends(exitDone, "", "repo", "verify", "--read-data")
	c := g.Client(t)
	for info := range c.ListObjects(t.Context(), g.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		_ = c.RemoveObject(t.Context(), g.Bucket, info.Key, minio.RemoveObjectOptions{VersionID: info.VersionID, GovernanceBypass: true})
	}
	back := filepath.Join(t.TempDir(), "restored.raw")
	p.ends(exitDone, "", "restore", locked.Backup, "--to-file", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the backup restores other bytes, %v", err)
	}
}

// After its lock has ended a backup is forgotten and pruned like others.
func TestLockEnds(t *testing.T) {
	p, g := newVault(t)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte("for a while; "), 20_000), 0o600); err != nil {
		t.Fatal(err)
	}
	m := p.lockFile(path, "6s")
	p.ends(exitRefused, "locked until", "forget", m.Backup)
	time.Sleep(time.Until(m.LockedUntil) + 3*time.Second) // packs and the others are locked for a quarter more
	p.ends(exitDone, "", "forget", m.Backup)
	p.ends(exitDone, "", "prune", "--alone")
	for info := range g.Client(t).ListObjects(t.Context(), g.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		if !strings.HasPrefix(info.Key, "vms/keys/") && info.Key != "vms/config" && !strings.HasPrefix(info.Key, "vms/marks/") {
			t.Errorf("%s is there still, version %s, %v", info.Key, info.VersionID, info.Err)
		}
	}
}

// Where backups cannot be locked, a run is refused before it stores anything, and locks that nobody can mean are wrong usage.
func TestLockRefused(t *testing.T) {
	p := newPlace(t)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.ends(exitRefused, "cannot be locked there", "run", "--file", path, "--lock", "30d")
	p.ends(exitUsage, "at most", "run", "--file", path, "--lock", "4000d")
	if out := p.ends(exitDone, "", "list", "-o", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("there are backups: %s", out)
	}
	p.dir = "s3+http://" + s3test.Start(t).Host + "/backups/vms"
	p.env = map[string]string{"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}
	id, err := os.ReadFile(p.identity)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := age.ParseX25519Identity(strings.TrimSpace(string(id)))
	if err != nil {
		t.Fatal(err)
	}
	p.ends(exitDone, "", "repo", "init", "--recipient", owner.Recipient().String())
	p.ends(exitRefused, "without object lock", "run", "--file", path, "--lock", "30d")
}
