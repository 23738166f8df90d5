package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
)

// bring restores the volumes and then, or with live as soon as they can be used, everything else.
func (k *machineRestore) bring(ctx context.Context) error {
	if k.live {
		return k.bringLive(ctx)
	}
	for _, p := range k.parts {
		if p.exists {
			continue
		}
		if err := k.a.restoreToVolume(ctx, k.r, p.from, client.ImportOptions{Name: p.Volume, Chunking: k.chunking}); err != nil {
			return fmt.Errorf("volume %s: %w", p.Volume, err)
		}
		k.undo = append(k.undo, func(ctx context.Context) error {
			_, detachErr := client.DetachVolume(ctx, k.api, p.Volume, false)
			if said := (*client.Error)(nil); errors.As(detachErr, &said) {
				detachErr = nil // it was not attached yet
			}
			_, err := client.DeleteVolume(ctx, k.api, p.Volume)
			return errors.Join(detachErr, err)
		})
	}
	return k.finish(ctx)
}

// bringLive lets the machine be used while the content of its volumes comes, of all at once.
func (k *machineRestore) bringLive(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	begun := make(chan struct{}, len(k.parts))
	left := 0
	for _, p := range k.parts {
		if p.exists && p.whole {
			continue
		}
		left++
		g.Go(func() error {
			_, err := k.a.restoreLive(ctx, k.r, p.from, liveRestore{volume: p.Volume, chunking: k.chunking, quiet: len(k.parts) > 1, begun: func() { begun <- struct{}{} }})
			if err != nil {
				return fmt.Errorf("volume %s: %w", p.Volume, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		for range left {
			select {
			case <-begun:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := k.finish(ctx); err != nil {
			return err
		}
		text := fmt.Sprintf("domain %s is defined and can be started: virsh start %s", k.plan.Domain, k.plan.Domain)
		if k.plan.Started {
			text = fmt.Sprintf("domain %s runs; what it reads is brought first", k.plan.Domain)
		}
		if k.a.output == "json" {
			k.a.note("hv-backup: %s", text)
		} else {
			k.a.say("%s", text)
		}
		return nil
	})
	return g.Wait()
}

// plannedFile is a file that is written.
type plannedFile struct {
	path  string
	owner string
	file  machine.File
}

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
			k.files = append(k.files, plannedFile{k.plan.NVRAM, k.m.NVRAM.Owner, *f})
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
			k.files = append(k.files, plannedFile{filepath.Join(k.plan.TPM, filepath.FromSlash(name)), owner, f})
		}
	}
	for _, medium := range k.m.Media {
		f := k.m.File(machine.MediumFile(medium.Target))
		path := medium.Path
		if same, err := sameContent(path, f.Data); err != nil || !same {
			path = filepath.Join(k.place.ImagesDir(), k.plan.Domain+"-"+medium.Target+extension(medium.Path, ".iso"))
			k.files = append(k.files, plannedFile{path, medium.Owner, *f})
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

// extension is that of a path, if it is a plain one.
func extension(path, otherwise string) string {
	ext := filepath.Ext(path)
	if len(ext) < 2 || len(ext) > 8 || strings.Trim(strings.ToLower(ext[1:]), "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return otherwise
	}
	return ext
}

// sameContent reports whether a file has that content.
func sameContent(path string, data []byte) (bool, error) {
	f, _, err := readSmall(path, machine.MaxFile)
	return err == nil && bytes.Equal(f.Data, data), err
}

// writeFiles writes what is not there yet, durably.
func (k *machineRestore) writeFiles() error {
	for _, f := range k.files {
		if same, _ := sameContent(f.path, f.file.Data); same {
			continue
		}
		if err := k.writeFile(f); err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	return nil
}

func (k *machineRestore) writeFile(f plannedFile) (err error) {
	dir := filepath.Dir(f.path)
	if err := k.makeDir(dir, f.owner, 0o700); err != nil {
		return err
	}
	to, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	k.undo = append(k.undo, func(context.Context) error { return os.Remove(f.path) })
	_, err = to.Write(f.file.Data)
	if err == nil {
		err = give(f.path, f.owner)
	}
	if err == nil {
		err = to.Chmod(fs.FileMode(f.file.Mode & 0o777))
	}
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close(), syncDir(dir))
}

// makeDir makes a folder and those above it that are missing.
func (k *machineRestore) makeDir(dir, owner string, mode fs.FileMode) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := k.makeDir(filepath.Dir(dir), owner, 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	k.undo = append(k.undo, func(context.Context) error { return os.Remove(dir) })
	return errors.Join(give(dir, owner), syncDir(filepath.Dir(dir)))
}

// give gives a file to whom it belonged, if root does so and this host knows him; libvirt gives most to whom it must when it starts the machine.
func give(path, owner string) error {
	uid, gid, known := numbersOf(owner)
	if os.Geteuid() != 0 || !known {
		return nil
	}
	return os.Lchown(path, uid, gid)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
