package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
)

// plannedFile is a file that is written.
type plannedFile struct {
	path  string
	dir   string // libvirt's own folder above it, or the TPM's, below which nothing leads out
	owner string
	gives bool // dir, and what is made in it, is given to the owner too
	file  machine.File
}

// sameContent reports whether a file has that content. One of another size is not opened, nor is what is no file: the path may be a hostile backup's.
func sameContent(path string, data []byte) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	if info.Mode().IsRegular() && info.Size() != int64(len(data)) {
		return false, nil
	}
	f, _, err := readSmall(path, machine.MaxFile)
	return err == nil && bytes.Equal(f.Data, data), err
}

// writeFiles writes what is not there yet, durably. Folders are given away when all is in them.
func (k *machineRestore) writeFiles() error {
	for _, f := range k.files {
		if same, _ := sameContent(f.path, f.file.Data); same {
			continue
		}
		if err := k.writeFile(f); err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	for _, f := range k.files {
		if !f.gives {
			continue
		}
		name, err := filepath.Rel(f.dir, f.path)
		for sub := filepath.Dir(name); err == nil; sub = filepath.Dir(sub) {
			if err = giveFolder(f, sub); sub == "." {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("give the folders of %s to %s: %w", f.path, f.owner, err)
		}
	}
	return nil
}

// writeFile writes a file, and makes its folders, which stay root's until all is written.
func (k *machineRestore) writeFile(f plannedFile) error {
	if err := k.makeDir(f.dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name, err := filepath.Rel(f.dir, f.path)
	if err != nil {
		return err
	}
	for at, c := range name {
		if c != filepath.Separator {
			continue
		}
		sub := name[:at]
		if err := root.Mkdir(sub, 0o700); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		k.undo = append(k.undo, func(context.Context) error { return removeIn(f.dir, sub) })
	}
	to, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	k.undo = append(k.undo, func(context.Context) error { return removeIn(f.dir, name) })
	_, err = to.Write(f.file.Data)
	if err == nil {
		err = give(to, f.owner)
	}
	if err == nil {
		err = to.Chmod(fs.FileMode(f.file.Mode & 0o777))
	}
	if err == nil {
		err = to.Sync()
	}
	err = errors.Join(err, to.Close())
	for sub := filepath.Dir(name); err == nil; sub = filepath.Dir(sub) {
		if err = syncIn(root, sub); sub == "." {
			break
		}
	}
	return err
}

// makeDir makes a folder and those above it that are missing, which everybody may pass through.
func (k *machineRestore) makeDir(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := k.makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	k.undo = append(k.undo, func(context.Context) error { return os.Remove(dir) })
	return syncDir(filepath.Dir(dir))
}

// giveFolder gives a folder below the one of a file, "." being that itself, to the file's owner.
func giveFolder(f plannedFile, sub string) error {
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := root.Open(sub)
	if err != nil {
		return err
	}
	return errors.Join(give(d, f.owner), d.Close())
}

// give gives what is open to whom it belonged, if root does so and this host knows him; libvirt gives most to whom it must when it starts the machine. A path could be another file by now.
func give(f *os.File, owner string) error {
	uid, gid, known := numbersOf(owner)
	if os.Geteuid() != 0 || !known {
		return nil
	}
	return f.Chown(uid, gid)
}

// removeIn removes a file, or a folder with nothing in it, whose way does not leave dir.
func removeIn(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return errors.Join(root.Remove(name), root.Close())
}

func syncIn(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
