package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/files"
	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// sameDomain is what --to-domain has without a name.
const sameDomain = "the same"

func newRestore(a *app) *cobra.Command {
	var file, volume, dir, domain, chunking string
	var volumes []string
	var live bool
	k := &machineRestore{a: a}
	c := &cobra.Command{
		Use:   "restore BACKUP --to-file FILE | restore BACKUP --to-volume NAME [--live] | restore BACKUP --to-dir FOLDER | restore BACKUP --to-domain [NAME] [--live]",
		Short: "Write a backup to a raw image, a new volume of hvd, a folder, or bring back a machine",
		Long: `Write a backup to a raw image, which is sparse, gets its name when it is complete, and replaces no other file; or to a new volume of hvd, which appears under its name when it is complete
and durable. With --live it can be attached at once: what a guest reads before it has come is brought first, the rest in the background, and what the guest writes stays. If that is interrupted, reads of what has not come wait, and
the same command goes on. Backups of files (run --files) are unpacked into a folder that is new or empty, by their whole paths below it. BACKUP is a name, as many letters of it as tell it from others, latest, or
latest:SOURCE. Every byte is checked before it is written.

With --to-domain it is a whole machine (run --domain): its volumes, under the names that they had, attached as they were; the variables of its firmware, the state of its TPM and its seed, in libvirt's folders; and its definition, which reads the new exports. Nothing that is there is written over. With another NAME it gets other names of volumes, too, and,
if a domain of its UUID is there, a new UUID and new MAC addresses. With --live it can be started at once. latest:NAME is then the youngest backup of that machine. libvirt runs what a definition says: restore only from a repository whose writers you trust.`,
		Example: `  hv-backup restore latest:web1 --to-file web1.raw --repo /mnt/backup/vms
  hv-backup restore latest:web1 --to-volume web1-restored --repo /mnt/backup/vms
  hv-backup restore latest:web1 --to-volume web1-restored --live --repo /mnt/backup/vms
  hv-backup restore latest:web1 --to-domain --repo /mnt/backup/vms
  hv-backup restore latest:web1 --to-domain web1-again --live --start --repo /mnt/backup/vms
  hv-backup restore latest:web1 --to-domain web2 --volume data=web2-data --dry-run --repo /mnt/backup/vms
  hv-backup restore latest:web1.conf --to-dir /srv/web1.conf --repo /mnt/backup/vms`,
		ValidArgsFunction: a.completeBackups(0, 1),
		Args: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("to-domain") && len(args) == 2 && domain == sameDomain {
				domain = args[1]
				return nil
			}
			return console.Exactly("BACKUP")(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if domain != "" && file+volume+dir == "" {
				return k.run(c.Context(), args[0], domain, chunking, live, volumes)
			}
			if domain == "" && (len(volumes) > 0 || k.connect+k.owner != "" || k.start || k.dryRun || k.adopt) {
				return console.Usagef("--volume, --existing, --connect, --socket-owner, --start and --dry-run are for --to-domain")
			}
			if to := slices.DeleteFunc([]string{file, volume, dir, domain}, func(to string) bool { return to == "" }); len(to) != 1 {
				return console.Usagef("where to? give one of --to-file, --to-volume, --to-dir and --to-domain")
			}
			if live && volume == "" {
				return console.Usagef("--live is for volumes and machines: give --to-volume or --to-domain")
			}
			if _, err := os.Lstat(file); file != "" && err == nil {
				return fmt.Errorf("%s: %w; give another name, or remove it first", file, block.ErrExists)
			}
			r, err := a.openIndexed(c.Context())
			if err != nil {
				return err
			}
			m, err := complete(c.Context(), a, r, args[0])
			if err != nil {
				return err
			}
			if archive := m.Source.Kind == files.Kind || m.Source.Kind == machine.Kind; archive != (dir != "") {
				if m.Source.Kind == machine.Kind {
					return console.Usagef("%s is of a machine: --to-domain brings it back, --to-dir unpacks its definition; its volumes have backups of their own", m.Name)
				}
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
				result["resumed"], err = a.restoreLive(c.Context(), r, m, liveRestore{volume: volume, chunking: chunking})
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
	f.StringVar(&domain, "to-domain", "", "the `NAME` of the machine to bring back, if it shall have another one")
	f.Lookup("to-domain").NoOptDefVal = sameDomain
	f.StringArrayVar(&volumes, "volume", nil, "`VOLUME=NAME`: with --to-domain, what a volume shall be called; may be repeated")
	f.StringVar(&k.owner, "socket-owner", "", "`USER[:GROUP]` of the sockets of the machine's volumes (default whose they were)")
	f.StringVar(&k.connect, "connect", "", connectHelp)
	f.BoolVar(&k.adopt, "existing", false, "with --to-domain, use volumes, firmware variables and the state of a TPM that are there as they are")
	f.BoolVar(&k.start, "start", false, "start the machine")
	f.BoolVar(&k.dryRun, "dry-run", false, "only say what --to-domain would do")
	f.BoolVar(&live, "live", false, "let the new volume, or the machine, be used at once, while its content comes")
	f.StringVar(&chunking, "chunking", "", "how the new volume is cut: cdc, or fixed:SIZE (default cdc)")
	return c
}

// run restores a machine to libvirt.
func (k *machineRestore) run(ctx context.Context, from, name, chunking string, live bool, volumes []string) error {
	k.chunking, k.live, k.renamed = chunking, live, make(map[string]string)
	if name != sameDomain {
		if err := checkDomainName(name); err != nil {
			return err
		}
		k.name = name
	}
	for _, v := range volumes {
		was, to, ok := strings.Cut(v, "=")
		if !ok || was == "" || to == "" {
			return console.Usagef("--volume %q: want VOLUME=NAME", v)
		}
		k.renamed[was] = to
	}
	var err error
	if k.r, err = k.a.openIndexed(ctx); err != nil {
		return err
	}
	all, err := k.r.Manifests(ctx, k.a.warn)
	if err != nil {
		return err
	}
	m, err := choose(slices.DeleteFunc(slices.Clone(all), func(m *repository.Manifest) bool { return m.Source.Kind != machine.Kind }), from)
	if err != nil {
		return fmt.Errorf("a machine (run --domain makes backups of them): %w", err)
	}
	began := time.Now()
	if err := k.restoreMachine(ctx, m, all); err != nil {
		return fmt.Errorf("restore %s to domain %s: %w", m.Name, cmp.Or(k.name, m.Source.Name), err)
	}
	k.plan.Seconds = time.Since(began).Seconds()
	return k.a.show(k.plan, func() {
		k.show()
		if !k.dryRun {
			k.a.say("restored %s to domain %s", m.Name, k.plan.Domain)
		}
	})
}

func (a *app) restoreToFile(ctx context.Context, r *repository.Repository, m *repository.Manifest, file string) error {
	meter := a.newMeter("restoring", m.SizeBytes)
	defer meter.End()
	return transfer.NewFile(file, m.SizeBytes, func(f *os.File) error { return backup.Restore(ctx, r, m, f, meter.At) })
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
