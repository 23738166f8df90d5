package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxMedium is the size, in bytes, up to which what is in a CD drive is backed up: seeds of cloud-init are, installers are not.
const maxMedium = 16 << 20

// collect reads what a machine is beside its volumes. What is not there, or cannot be read, is said, and keeps nothing else from being backed up.
func (k *machineRun) collect(ctx context.Context, m *machineAt) {
	if m.nvram.Has {
		m.NVRAM = &machine.Part{State: machine.Left, Why: "it is on no file"}
		if m.nvram.Kind == "file" {
			k.addNVRAM(m)
		}
		k.tell(m, "the variables of its firmware", m.NVRAM)
	}
	if m.hasTPM && ctx.Err() == nil {
		m.TPM = k.addTPM(m)
		k.tell(m, "the state of its TPM", m.TPM)
	}
	for _, disk := range m.media {
		f, owner, err := readSmall(disk.Path, maxMedium)
		if err != nil {
			left := machine.Other{Target: disk.Target, Device: disk.Device, Source: disk.Where(), Why: err.Error()}
			m.Left = append(m.Left, left)
			k.a.note("hv-backup: domain %s: %s %s (%s) is not in the backup: %v", m.Name, disk.Device, disk.Target, disk.Path, err)
			continue
		}
		f.Name = machine.MediumFile(disk.Target)
		m.Media, m.Contents = append(m.Media, machine.Medium{Target: disk.Target, Path: disk.Path, Owner: owner}), append(m.Contents, f)
	}
}

// tell says what was left out.
func (k *machineRun) tell(m *machineAt, what string, part *machine.Part) {
	if part.State == machine.Left {
		k.a.note("hv-backup: domain %s: %s is not in the backup: %s", m.Name, what, part.Why)
	}
}

func (k *machineRun) addNVRAM(m *machineAt) {
	if m.nvram.Path == "" {
		m.NVRAM = &machine.Part{State: machine.Missing}
		return
	}
	f, owner, err := readSmall(m.nvram.Path, machine.MaxFile)
	m.NVRAM = partOf(owner, err)
	if err == nil {
		f.Name = machine.NVRAMFile
		m.Contents = append(m.Contents, f)
	}
}

// partOf says what became of a part.
func partOf(owner string, err error) *machine.Part {
	switch {
	case errors.Is(err, fs.ErrNotExist): // before the first start
		return &machine.Part{State: machine.Missing}
	case err != nil:
		return &machine.Part{State: machine.Left, Why: err.Error()}
	}
	return &machine.Part{State: machine.Stored, Owner: owner}
}

// addTPM reads the folder with the state of a TPM.
func (k *machineRun) addTPM(m *machineAt) *machine.Part {
	dir := filepath.Join(k.place.TPMDir(), m.UUID)
	var all []machine.File
	owner, sum := "", 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || e.Name() == ".lock" {
			return err
		}
		f, of, err := readSmall(path, machine.MaxFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // replaced by a new one meanwhile, which has its name
		}
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if sum += len(f.Data); err == nil && sum > machine.MaxFile {
			err = fmt.Errorf("%s has more than %d B: %w", dir, machine.MaxFile, block.ErrInvalid)
		}
		f.Name, owner = machine.TPMFile(relative), of
		all = append(all, f)
		return err
	})
	if err == nil && len(all) == 0 {
		err = fs.ErrNotExist
	}
	if err == nil {
		m.Contents = append(m.Contents, all...)
	}
	return partOf(owner, err)
}

// readSmall reads a regular file of at most that many bytes. Nothing else is opened: that of a device may do something.
func readSmall(path string, most int64) (f machine.File, owner string, err error) {
	if info, err := os.Stat(path); err != nil {
		return f, "", err
	} else if !info.Mode().IsRegular() {
		return f, "", fmt.Errorf("%s is no file: %w", path, block.ErrInvalid)
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return f, "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return f, "", err
	}
	if !info.Mode().IsRegular() {
		return f, "", fmt.Errorf("%s is no file: %w", path, block.ErrInvalid)
	}
	f.Mode = uint32(info.Mode().Perm())
	if f.Data, err = io.ReadAll(io.LimitReader(file, most+1)); err == nil && int64(len(f.Data)) > most {
		err = fmt.Errorf("%s has more than %d B: %w", path, most, block.ErrInvalid)
	}
	return f, ownerOf(info), err
}

// ownerOf is USER:GROUP, by names where they have one.
func ownerOf(info fs.FileInfo) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	uid, gid := strconv.Itoa(int(stat.Uid)), strconv.Itoa(int(stat.Gid))
	if u, err := user.LookupId(uid); err == nil {
		uid = u.Username
	}
	if g, err := user.LookupGroupId(gid); err == nil {
		gid = g.Name
	}
	return uid + ":" + gid
}

// numbersOf are the ids of USER:GROUP here; false where this host knows one of them not.
func numbersOf(owner string) (uid, gid int, ok bool) {
	name, group, _ := strings.Cut(owner, ":")
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	}
	if g, err := user.LookupGroup(group); err == nil {
		group = g.Gid
	}
	uid, err1 := strconv.Atoi(name)
	gid, err2 := strconv.Atoi(group)
	return uid, gid, err1 == nil && err2 == nil
}
