package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/files"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newRestore(a *app) *cobra.Command {
	var file, volume, dir, chunking string
	var live bool
	c := &cobra.Command{
		Use:   "restore BACKUP --to-file FILE | restore BACKUP --to-volume NAME [--live] | restore BACKUP --to-dir FOLDER",
		Short: "Write a backup to a raw image, a new volume of hvd, or a folder",
		Long: `Write a backup to a raw image, which is sparse, gets its name when it is complete, and replaces no other file; or to a new volume of hvd, which appears under its name when it is complete
and durable. With --live it can be attached at once: what a guest reads before it has come is brought first, the rest in the background, and what the guest writes stays. If that is interrupted, reads of what has not come wait, and
the same command goes on. Backups of files (run --files) are unpacked into a folder that is new or empty, by their whole paths below it. BACKUP is a name, as many letters of it as tell it from others, latest, or
latest:SOURCE. Every byte is checked before it is written.`,
		Example: `  hv-backup restore latest:web1 --to-file web1.raw --repo /mnt/backup/vms
  hv-backup restore latest:web1 --to-volume web1-restored --repo /mnt/backup/vms
  hv-backup restore latest:web1 --to-volume web1-restored --live --repo /mnt/backup/vms
  hv-backup restore latest:web1.conf --to-dir /srv/web1.conf --repo /mnt/backup/vms`,
		Args: console.Exactly("BACKUP"),
		RunE: func(c *cobra.Command, args []string) error {
			if to := slices.DeleteFunc([]string{file, volume, dir}, func(to string) bool { return to == "" }); len(to) != 1 {
				return console.Usagef("where to? give one of --to-file, --to-volume and --to-dir")
			}
			if live && volume == "" {
				return console.Usagef("--live is for volumes: give --to-volume")
			}
			if _, err := os.Lstat(file); file != "" && err == nil {
				return fmt.Errorf("%s: %w", file, block.ErrExists)
			}
			r, err := a.openIndexed(c.Context())
			if err != nil {
				return err
			}
			m, err := complete(c.Context(), a, r, args[0])
			if err != nil {
				return err
			}
			if (m.Source.Kind == files.Kind) != (dir != "") {
				if dir == "" {
					return console.Usagef("%s is of files: --to-dir unpacks them", m.Name)
				}
				return console.Usagef("%s is of a disk: `hv-backup mount` shows the files on it", m.Name)
			}
			began := time.Now()
			result := map[string]any{"backup": m.Name, "sizeBytes": m.SizeBytes}
			to := "volume " + volume
			switch {
			case file != "":
				to = file
				result["file"], err = file, a.restoreToFile(c.Context(), r, m, file)
			case dir != "":
				to = dir
				result["folder"], err = dir, a.restoreToDir(c.Context(), r, m, dir)
			case live:
				result["volume"], result["live"] = volume, true
				result["resumed"], err = a.restoreLive(c.Context(), r, m, volume, chunking)
			default:
				result["volume"], err = volume, a.restoreToVolume(c.Context(), r, m, client.ImportOptions{Name: volume, Chunking: chunking})
			}
			if err != nil {
				return fmt.Errorf("restore %s to %s: %w", m.Name, to, err)
			}
			result["seconds"] = time.Since(began).Seconds()
			return a.show(result, func() { a.say("restored %s to %s (%s)", m.Name, to, units.Size(m.SizeBytes).Human()) })
		},
	}
	f := c.Flags()
	f.StringVar(&file, "to-file", "", "the image to write")
	f.StringVar(&dir, "to-dir", "", "the folder to unpack files into")
	f.StringVar(&volume, "to-volume", "", "the volume to make")
	f.BoolVar(&live, "live", false, "let the new volume be used at once, while its content comes")
	f.StringVar(&chunking, "chunking", "", "how the new volume is cut: cdc, or fixed:SIZE (default cdc)")
	return c
}

func (a *app) restoreToFile(ctx context.Context, r *repository.Repository, m *repository.Manifest, file string) error {
	meter := a.newMeter("restoring", m.SizeBytes)
	defer meter.End()
	return restoreTo(file, m, func(f *os.File) error { return backup.Restore(ctx, r, m, f, meter.At) })
}

// restoreToDir unpacks a backup of files.
func (a *app) restoreToDir(ctx context.Context, r *repository.Repository, m *repository.Manifest, dir string) (err error) {
	device, err := backup.NewDevice(r, m, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	_, err = files.Unpack(bufio.NewReaderSize(io.NewSectionReader(deviceReader{ctx, device}, 0, int64(m.SizeBytes)), 1<<20), dir)
	return err
}

// deviceReader is a backup as an io.ReaderAt.
type deviceReader struct {
	ctx    context.Context // of the one restore that it is made for
	device *backup.Device
}

// ReadAt implements io.ReaderAt, for ranges within the backup.
func (d deviceReader) ReadAt(p []byte, off int64) (int, error) {
	if _, err := d.device.ReadAt(d.ctx, p, uint64(off), nil); err != nil {
		return 0, err
	}
	return len(p), nil
}

// restoreToVolume sends a backup to hvd, which makes the volume visible when it has all of it.
func (a *app) restoreToVolume(ctx context.Context, r *repository.Repository, m *repository.Manifest, opts client.ImportOptions) (err error) {
	api, err := a.hvd()
	if err != nil {
		return err
	}
	device, err := backup.NewDevice(r, m, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	meter := a.newMeter("restoring", m.SizeBytes)
	defer meter.End()
	_, err = api.Import(ctx, opts, func(ctx context.Context, w io.Writer) error {
		stream, err := transfer.NewWriter(w, m.SizeBytes)
		if err != nil {
			return err
		}
		if err := transfer.Send(ctx, stream, sparseBackup{ctx, device}, m.SizeBytes, meter.At); err != nil {
			return errors.Join(err, stream.Fail(err.Error()))
		}
		return nil
	})
	return err
}

// sparseBackup is a backup as a transfer.Sparse.
type sparseBackup struct {
	ctx context.Context // of the one transfer that it is made for
	*backup.Device
}

// NextData implements transfer.Sparse.
func (s sparseBackup) NextData(off uint64) (uint64, error) { return s.Device.NextData(s.ctx, off) }

// restoreTo makes a sparse file beside path, has it filled, and gives it its name.
func restoreTo(path string, m *repository.Manifest, fill func(*os.File) error) error {
	partial := path + ".partial"
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(int64(m.SizeBytes))
	if err == nil {
		err = fill(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(partial, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(partial))
	}
	return nil
}
