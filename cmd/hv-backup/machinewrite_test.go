package main

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Files of a machine are written below their folder only, never over anything, and are taken back; folders above stay whose they are.
func TestWriteFiles(t *testing.T) {
	top := t.TempDir()
	dir, outside := filepath.Join(top, "a/swtpm/id"), filepath.Join(top, "outside")
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	owner, known := "", os.Geteuid() == 0
	if known {
		owner = "1:1"
	}
	file := func(name string) plannedFile {
		return plannedFile{path: filepath.Join(dir, name), dir: dir, owner: owner, gives: true, file: machine.File{Mode: 0o640, Data: []byte(name)}}
	}
	k := &machineRestore{files: []plannedFile{file("tpm2/state"), file("log")}}
	for range 2 { // the second time all is there
		if err := k.writeFiles(); err != nil {
			t.Fatal(err)
		}
	}
	for name, given := range map[string]bool{"a": false, "a/swtpm": false, "a/swtpm/id": true, "a/swtpm/id/tpm2": true, "a/swtpm/id/tpm2/state": true, "a/swtpm/id/log": true} {
		info, err := os.Lstat(filepath.Join(top, name))
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; known && (uid == 1) != given {
			t.Errorf("%s belongs to %d", name, uid)
		}
		if !info.IsDir() && info.Mode().Perm() != 0o640 {
			t.Errorf("%s is %v", name, info.Mode())
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	away := &machineRestore{files: []plannedFile{file("away/state")}}
	if err := away.writeFiles(); err == nil {
		t.Error("a link leads out")
	}
	over := file("log")
	over.file.Data = []byte("other")
	if err := (&machineRestore{files: []plannedFile{over}}).writeFiles(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("written over a file: %v", err)
	}
	if all, _ := os.ReadDir(outside); len(all) != 0 {
		t.Errorf("outside are %v", all)
	}
	if err := os.Remove(filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	if err := k.takeBack(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(top, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("taken back, it is there: %v", err)
	}
}

// What is no file is not opened, whatever a backup says where a medium was.
func TestReadSmallOpensFilesOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := sameContent(path, []byte("content")); !errors.Is(err, block.ErrInvalid) { // to open a socket is another error
		t.Errorf("a socket: %v", err)
	}
	denied := filepath.Join(t.TempDir(), "denied")
	if err := os.WriteFile(denied, []byte("longer"), 0); err != nil {
		t.Fatal(err)
	}
	if same, err := sameContent(denied, []byte("short")); same || err != nil { // root could open it, others see the error of opening
		t.Errorf("of another size: %v, %v", same, err)
	}
}
