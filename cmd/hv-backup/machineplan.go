package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
)

// planFiles decides where what lies beside the volumes goes: into libvirt's own folders, whatever the backup says, which may be hostile. Nothing is written over.
func (k *machineRestore) planFiles() error {
	if k.defined {
		return nil
	}
	d, err := hypervisor.Parse(k.m.XML)
	if err != nil {
		return err
	}
	if d.NVRAM.Has && d.NVRAM.Kind == "file" && (d.NVRAM.Path != "" || k.m.File(machine.NVRAMFile) != nil) {
		k.plan.NVRAM = filepath.Join(k.place.NVRAMDir(), k.plan.Domain+"_VARS"+extension(d.NVRAM.Path, ".fd"))
		k.change.NVRAM = k.plan.NVRAM
		if f := k.m.File(machine.NVRAMFile); f != nil {
			k.files = append(k.files, plannedFile{path: k.plan.NVRAM, dir: k.place.NVRAMDir(), owner: k.nvramOwner(), file: *f})
		} else if _, err := os.Lstat(k.plan.NVRAM); err == nil && !k.adopt && !k.resumed {
			return fmt.Errorf("%s holds the variables of some machine's firmware, and the backup has none: remove it, use it as it is with --existing, or give --to-domain another name: %w", k.plan.NVRAM, block.ErrExists)
		}
	}
	if tpm := k.m.TPMFiles(); len(tpm) > 0 {
		id, err := uuid.Parse(k.plan.UUID)
		if err != nil {
			return fmt.Errorf("machine of UUID %.40q: %w", k.plan.UUID, block.ErrCorrupt)
		}
		k.plan.TPM = filepath.Join(k.place.TPMDir(), id.String())
		if entries, err := os.ReadDir(k.plan.TPM); err == nil && len(entries) > 0 && !k.resumed {
			if !k.adopt {
				return fmt.Errorf("%s holds the state of a TPM: remove it if it is of no use, or use it as it is with --existing: %w", k.plan.TPM, block.ErrExists)
			}
			tpm = nil
		}
		owner := ""
		if k.m.TPM != nil {
			owner = k.m.TPM.Owner
		}
		for name, f := range tpm {
			k.files = append(k.files, plannedFile{path: filepath.Join(k.plan.TPM, filepath.FromSlash(name)), dir: k.plan.TPM, owner: owner, gives: true, file: f})
		}
	}
	for _, medium := range k.m.Media {
		f := k.m.File(machine.MediumFile(medium.Target))
		path := medium.Path
		if same, err := sameContent(path, f.Data); err != nil || !same || k.writes(d, medium.Target) {
			path = filepath.Join(k.place.ImagesDir(), k.plan.Domain+"-"+medium.Target+extension(medium.Path, ".iso"))
			k.files = append(k.files, plannedFile{path: path, dir: k.place.ImagesDir(), owner: medium.Owner, file: *f})
			k.change.Disks[medium.Target] = hypervisor.Source{File: path}
		}
		k.plan.Media = append(k.plan.Media, path)
	}
	if k.adopt {
		k.files = slices.DeleteFunc(k.files, func(f plannedFile) bool {
			_, err := os.Lstat(f.path)
			return err == nil
		})
	}
	for _, f := range k.files {
		if same, err := sameContent(f.path, f.file.Data); err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && !same && !k.resumed {
			return fmt.Errorf("%s is there and holds something else: move it away, use it as it is with --existing, or give --to-domain another name: %w", f.path, errors.Join(err, block.ErrExists))
		}
	}
	return nil
}

// writes reports whether a machine beside the one it was would write to what is in that drive: a floppy is no CD, so each gets one of its own.
func (k *machineRestore) writes(d *hypervisor.Domain, target string) bool {
	return k.plan.Domain != k.m.Name && slices.ContainsFunc(d.Disks, func(disk hypervisor.Disk) bool { return disk.Target == target && disk.Device != "cdrom" })
}

// nvramOwner is whose the variables of the firmware were, if the backup says so.
func (k *machineRestore) nvramOwner() string {
	if k.m.NVRAM == nil {
		return ""
	}
	return k.m.NVRAM.Owner
}

// extension is that of a path, if it is a plain one.
func extension(path, otherwise string) string {
	ext := filepath.Ext(path)
	if len(ext) < 2 || len(ext) > 8 || strings.Trim(strings.ToLower(ext[1:]), "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return otherwise
	}
	return ext
}
