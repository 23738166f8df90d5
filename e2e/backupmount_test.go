package e2e

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// partitioned makes a disk with two ext4 file systems, swap and something unknown on it, and a folder with what is in the first.
func partitioned(t *testing.T) (image, root string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "root")
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "etc"), 0o755), os.WriteFile(filepath.Join(root, "etc", "fstab"), []byte("/dev/vda1 / ext4\n"), 0o644), os.WriteFile(filepath.Join(root, "big"), noise(12, 20<<20), 0o600), os.WriteFile(filepath.Join(root, "suid"), []byte("#!/bin/sh\necho executed\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	image = filepath.Join(t.TempDir(), "disk.raw")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 130<<20)); err != nil {
		t.Fatal(err)
	}
	table := writeFile(t, "table", "label: gpt\nsize=60M\nsize=20M,type=S\nsize=30M\nsize=8M\n")
	tool(t, "sh", "-c", "sfdisk -q "+image+" <"+table)
	tool(t, "mkfs.ext4", "-q", "-F", "-L", "root\x1b[31m", "-d", root, "-E", "offset=1048576", image, "60M")
	tool(t, "mkfs.ext4", "-q", "-F", "-L", "data", "-E", "offset="+"84934656", image, "30M")
	return image, root
}

// The files of a backup can be browsed, by whoever may, and nothing of them runs; the mount ends cleanly, whoever ends it, and however.
func TestBackupMount(t *testing.T) {
	needsMounts(t)
	needs(t, "nbdfuse", "fusermount3", "mount", "sfdisk", "blkid", "mkfs.ext4")
	t.Setenv("XDG_RUNTIME_DIR", shortDir(t))
	r := newRepo(t)
	image, root := partitioned(t)
	r.run("run", "--file", image)
	dir := filepath.Join(shortDir(t), "mnt with a space")
	if got := r.try("mount", "latest", dir); got.code != 3 {
		t.Errorf("a directory that is missing: %d %s", got.code, got.stderr)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = execute(t, nil, backupPath, "unmount", dir) })

	s := r.serve("mount", "latest", dir)
	if s.first.Directory != dir {
		t.Errorf("it says %+v", s.first)
	}
	tool(t, "diff", "-r", "--exclude=lost+found", root, filepath.Join(dir, "p1"))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 || entries[1].Name() != "p3" {
		t.Errorf("mounted are %v, %v", entries, err)
	}
	if err := exec.Command(filepath.Join(dir, "p1", "suid")).Run(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a program of the guest runs: %v", err)
	}
	for _, line := range strings.Split(tool(t, "cat", "/proc/self/mounts"), "\n") {
		if strings.Contains(line, filepath.Dir(dir)) && !strings.Contains(line, "ro,nosuid,nodev,noexec") {
			t.Errorf("mounted as %s", line)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "p1", "new"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a write: %v", err)
	}
	if got := r.try("mount", "latest", dir); got.code != 4 {
		t.Errorf("a second mount there: %d %s", got.code, got.stderr)
	}
	s.interrupt()
	unmounted(t, dir, s)

	s = r.serve("mount", "latest", dir)
	if got := execute(t, nil, backupPath, "unmount", dir); got.code != 0 {
		t.Errorf("unmount: %d %s", got.code, got.stderr)
	}
	<-s.exited
	unmounted(t, dir, s)
	if got := execute(t, nil, backupPath, "unmount", dir); got.code != 3 {
		t.Errorf("a second unmount: %d %s", got.code, got.stderr)
	}

	s = r.serve("mount", "latest", dir)
	_ = s.cmd.Process.Kill()
	<-s.exited
	if got := execute(t, nil, backupPath, "unmount", dir); got.code != 0 {
		t.Errorf("unmount after a kill: %d %s", got.code, got.stderr)
	}
	unmounted(t, dir, s)

	killedEarly(t, r, dir)
	bare := writeFile(t, "bare.raw", "")
	tool(t, "mkfs.ext4", "-q", bare, "20M")
	r.run("run", "--file", bare)
	s = r.serve("mount", "latest", dir)
	if entries, err := os.ReadDir(filepath.Join(dir, "disk")); err != nil || len(entries) != 1 {
		t.Errorf("a disk without partitions has %v, %v", entries, err)
	}
	s.interrupt()

	text := writeFile(t, "noise.raw", string(noise(13, 1<<20)))
	r.run("run", "--file", text)
	if got := r.try("mount", "latest", dir); got.code != 1 || !strings.Contains(got.stderr, "no file system was found") {
		t.Errorf("noise: %d %s", got.code, got.stderr)
	}
	unmounted(t, dir, s)
}

// killedEarly kills a mount as soon as the disk is a file, before anything of it is mounted: that can be unmounted, too.
func killedEarly(t *testing.T, r *repo, dir string) {
	t.Helper()
	s := &served{t: t, said: &transcript{}}
	s.cmd = exec.Command(backupPath, r.args("mount", "latest", dir)...)
	s.cmd.Stdout, s.cmd.Stderr = s.said, s.said
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if text, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(text), "/fuse fuse") {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("no disk appears\n%s", s.said)
			break
		}
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	if got := execute(t, nil, backupPath, "unmount", dir); got.code != 0 {
		t.Errorf("unmount after an early kill: %d %s", got.code, got.stderr)
	}
	unmounted(t, dir, s)
}

// unmounted fails the test if something is left of a mount.
func unmounted(t *testing.T, dir string, s *served) {
	t.Helper()
	left := tool(t, "cat", "/proc/self/mounts")
	if strings.Contains(left, filepath.Dir(dir)) || strings.Contains(left, os.Getenv("XDG_RUNTIME_DIR")) {
		t.Errorf("still mounted: %s\n%s", left, s.said)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	if got, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "*")); len(got) > 0 {
		t.Errorf("folders are left: %q", got)
	}
}
