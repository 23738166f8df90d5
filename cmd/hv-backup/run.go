package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/files"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newRun(a *app) *cobra.Command {
	var tags, agents, domains []string
	var file, asFiles, full bool
	var connect string
	var lock units.Span
	c := &cobra.Command{
		Use:   "run VOLUME[@SNAPSHOT]... | run @GROUP | run --domain NAME[,NAME...] | run --file IMAGE | run --files NAME PATH...",
		Short: "Back up volumes of hvd, an image, a block device, or files",
		Long: `Back up volumes of hvd as they are at this moment, attached or not: several volumes, or a group, at the same moment. Or one of a volume's snapshots, or, with --file, a raw image or a block
device. Only what the repository does not have yet is stored. An interrupt leaves the repository as it was; the next run does not store again what is there.

hvd keeps a snapshot of each volume for each repository, named backup-REPOSITORY-TIME, and tells the next run what has changed since: only that is read. The backup has all of the volume
and is as much on its own as one that reads everything, which is what happens the first time, with --full, when that snapshot or its backup is gone, and with keys that can only write. The first backup of a clone reads
what differs from that of its origin, or of another volume that it has content in common with.

A backup is as after a power loss, which file systems and databases survive. With --guest-agent the guest flushes and holds its writes for the moment of the snapshot, by the qemu-guest-agent that listens at a
socket of QEMU; if that does not answer within 10 s, the backup is made all the same, and says which it is.

With --domain it is whole machines of libvirt: all disks of a domain that are exports of this hvd, at one moment, and beside them, as a backup of kind machine, its definition, the variables of its firmware, the state of its TPM and its seed of cloud-init.
If it runs and its guest runs qemu-guest-agent, libvirt freezes the guest for that moment; several domains are frozen and backed up together. "restore --to-domain" brings back the machine.

With --lock nobody can delete the backup, nor anything that it needs, for so long from now on: not with all keys of the object storage, and not you either. Think before you lock for years. It takes a bucket that was made with
object lock, in which "forget" and "prune" leave alone what is locked (docs/hv-backup.md).

With --files it is files and folders, under a name: what a host or a guest needs beside its disks, such as hvd.yaml, a domain's XML, its NVRAM and the state of its TPM; at most 1 GiB.`,
		Example: `  hv-backup run web1 --tag daily --repo /mnt/backup/vms
  hv-backup run @shop --tag nightly --repo /mnt/backup/vms
  hv-backup run db1 --guest-agent db1=/run/vms/db1/agent.sock --repo /mnt/backup/vms
  hv-backup run --domain web1 --repo /mnt/backup/vms
  hv-backup run --domain web1,db1 --connect qemu:///system --tag nightly --repo /mnt/backup/vms
  hv-backup run db1 --lock 30d --repo s3://backups/vms
  hv-backup run --file old-disk.raw --repo /mnt/backup/vms
  hv-backup run --files db1.conf /etc/libvirt/qemu/db1.xml /var/lib/libvirt/qemu/nvram/db1_VARS.fd --repo /mnt/backup/vms`,
		Args: func(c *cobra.Command, args []string) error {
			if len(domains) > 0 {
				return console.Between(0, 1000, "VOLUME, @GROUP or IMAGE")(c, args)
			}
			return console.Between(1, 1000, "VOLUME, @GROUP or IMAGE")(c, args)
		},
		ValidArgsFunction: a.completeRun,
		RunE: func(c *cobra.Command, args []string) error {
			var work *runWork
			var err error
			switch {
			case len(domains) > 0:
				work, err = a.planDomains(args, domains, connect, file || asFiles, full, agents)
			case connect != "":
				err = console.Usagef("--connect is for --domain")
			default:
				work, err = a.planRun(args, file, asFiles, full, agents)
			}
			if err != nil {
				return err
			}
			until, err := lockEnd(lock)
			if err != nil {
				return err
			}
			ctx := c.Context()
			r, err := a.openIndexed(ctx)
			if err != nil {
				return err
			}
			if lock > 0 {
				if err := r.CanLock(ctx); err != nil {
					return err
				}
			}
			if _, err := r.Adopt(ctx, a.warn); err != nil {
				return err
			}
			work.r, work.tags, work.lockedUntil = r, tags, until
			return work.all(ctx)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&tags, "tag", nil, "a word to find the backup by; may be repeated")
	f.BoolVar(&file, "file", false, "the argument is a raw image or a block device")
	f.BoolVar(&asFiles, "files", false, "the arguments are a name for the backup, and files and folders")
	f.StringArrayVar(&agents, "guest-agent", nil, "`VOLUME=SOCKET` of the guest's agent, which brings its file systems to rest; may be repeated")
	f.StringSliceVar(&domains, "domain", nil, "domains of libvirt to back up as whole machines")
	f.StringVar(&connect, "connect", "", connectHelp)
	_ = c.RegisterFlagCompletionFunc("domain", a.completeDomains)
	f.Var(&lock, "lock", "how long nobody can delete the backup, such as 30d (default not locked)")
	f.BoolVar(&full, "full", false, "read whole volumes, not only what has changed since their last backup")
	return c
}

// runWork is what one command backs up.
type runWork struct {
	a    *app
	r    *repository.Repository
	tags []string
	full bool

	lockedUntil time.Time // zero: not

	agents  map[string]string // sockets of guests' agents, by volume
	group   string            // or
	volumes []string          // to freeze at one moment, or
	alone   string            // VOLUME@SNAPSHOT, a file, or a name for
	files   []string          // files and folders
	file    bool

	machines *machineRun // or whole machines
}

// planRun reads the arguments.
func (a *app) planRun(args []string, file, asFiles, full bool, agents []string) (*runWork, error) {
	w := &runWork{a: a, full: full, file: file, agents: make(map[string]string)}
	for _, agent := range agents {
		volume, socket, ok := strings.Cut(agent, "=")
		if !ok || volume == "" || socket == "" {
			return nil, console.Usagef("--guest-agent %q: want VOLUME=SOCKET", agent)
		}
		w.agents[volume] = socket
	}
	if asFiles {
		if file || len(args) < 2 || len(agents) > 0 {
			return nil, console.Usagef("--files: want a name and files or folders, as in run --files web1.conf /etc/hvd.yaml")
		}
		if len(args[0]) > 200 || strings.Contains(args[0], "/") || !filepath.IsLocal(args[0]) {
			return nil, console.Usagef("--files: the name %.40q could not be one of a folder: at most 200 bytes, without slashes", args[0])
		}
		w.alone, w.files = args[0], args[1:]
		return w, nil
	}
	if len(args) > 1 && (file || slices.ContainsFunc(args, func(arg string) bool { return strings.Contains(arg, "@") })) {
		return nil, console.Usagef("several arguments: only volumes are backed up together, not groups, snapshots or files")
	}
	group, isGroup := strings.CutPrefix(args[0], "@")
	switch {
	case file || !isGroup && strings.Contains(args[0], "@"):
		w.alone = args[0]
	case isGroup && group == "":
		return nil, console.Usagef("%q: a group has a name, as in @shop", args[0])
	case isGroup:
		w.group = group
	default:
		w.volumes = slices.Clone(args)
		slices.Sort(w.volumes)
		w.volumes = slices.Compact(w.volumes)
	}
	for volume := range w.agents {
		if w.alone != "" || w.group == "" && !slices.Contains(w.volumes, volume) {
			return nil, console.Usagef("--guest-agent %s=…: that volume is not frozen", volume)
		}
	}
	return w, nil
}

// doneRun is a backup that was made, with -o json.
type doneRun struct {
	Backup      string  `json:"backup"`
	Kind        string  `json:"kind"`
	Source      string  `json:"source"`
	SizeBytes   uint64  `json:"sizeBytes"`
	NonZero     uint64  `json:"nonZeroBytes"`
	NewBytes    uint64  `json:"newBytes"`
	StoredBytes uint64  `json:"storedBytes"`
	Parent      string  `json:"parent,omitempty"`    // what did not change since was not read
	ReadBytes   *uint64 `json:"readBytes,omitempty"` // with a parent
	Consistency string  `json:"consistency"`         // "offline", "frozen" or "crash"
	Seconds     float64 `json:"seconds"`

	FrozenSeconds float64 `json:"frozenSeconds,omitempty"` // of a machine: how long its guest was held

	LockedUntil time.Time `json:"lockedUntil,omitzero"`
}

// all makes the backups. One that fails does not keep the others from being made.
func (w *runWork) all(ctx context.Context) error {
	if w.machines != nil {
		return w.machines.all(ctx, w)
	}
	if w.alone != "" {
		done, err := w.one(ctx, w.alone, time.Time{}, func(m *repository.Manifest) error { return w.still(ctx, m) })
		if err != nil {
			return err
		}
		return w.a.show(done, func() {})
	}
	api, err := w.a.hvd()
	if err != nil {
		return err
	}
	frozen, at, failed := w.a.freeze(ctx, api, w.r, w.volumes, w.group, w.agents)
	if len(frozen) == 0 {
		return failed
	}
	all := []*doneRun{}
	for _, v := range frozen {
		done, err := w.one(ctx, v.snapshot.Volume, at, func(m *repository.Manifest) error { return v.backUp(ctx, m, w.full) })
		if failed = errors.Join(failed, err); err == nil {
			all = append(all, done)
		}
	}
	if w.group == "" && len(w.volumes) == 1 {
		if len(all) == 0 {
			return failed
		}
		return errors.Join(w.a.show(all[0], func() {}), failed)
	}
	return errors.Join(w.a.show(all, func() {}), failed)
}

// one makes one backup and says so.
func (w *runWork) one(ctx context.Context, name string, at time.Time, do func(*repository.Manifest) error) (*doneRun, error) {
	m := &repository.Manifest{Tags: w.tags, Time: at, LockedUntil: w.lockedUntil}
	m.Source.Host, _ = os.Hostname()
	began := time.Now()
	if err := do(m); err != nil {
		return nil, fmt.Errorf("back up %s: %w", name, err)
	}
	done := &doneRun{m.Name, m.Source.Kind, m.Source.Name, m.SizeBytes, m.NonZero, m.NewBytes, m.StoredBytes, m.Parent, nil, m.Consistency, time.Since(began).Seconds(), 0, m.LockedUntil}
	read := ""
	if m.Parent != "" {
		done.ReadBytes = &m.ReadBytes
		read = fmt.Sprintf(", %s read", units.Size(m.ReadBytes).Human())
	}
	if w.a.output != "json" {
		w.a.say("backed up %s as %s: %s of data%s, %s new, %s stored", name, m.Name, units.Size(m.NonZero).Human(), read, units.Size(m.NewBytes).Human(), units.Size(m.StoredBytes).Human())
		if !m.LockedUntil.IsZero() {
			w.a.say("%s is locked until %s", m.Name, m.LockedUntil.Local().Format(time.DateTime))
		}
	}
	return done, nil
}

// still backs up what does not change: a file, or a snapshot of a volume.
func (w *runWork) still(ctx context.Context, m *repository.Manifest) error {
	src, end, err := w.source(ctx, m)
	if err != nil {
		return err
	}
	meter := w.a.newMeter("backing up", src.Size())
	err = backup.Run(ctx, w.r, src, m, tellTo(meter))
	meter.End()
	return errors.Join(err, end())
}

// tellTo shows the progress of a backup.
func tellTo(meter *console.Meter) func(backup.Progress) {
	return func(p backup.Progress) {
		meter.Also = units.Size(p.NewBytes).Human() + " new"
		if p.ToLock > 0 {
			meter.Also = fmt.Sprintf("%d of %d objects locked", p.Locked, p.ToLock)
		}
		meter.At(p.DoneBytes)
	}
}

// source opens what does not change and says what it is in the manifest. end closes it.
func (w *runWork) source(ctx context.Context, m *repository.Manifest) (src backup.Source, end func() error, err error) {
	name, a := w.alone, w.a
	if w.files != nil {
		m.Source.Kind, m.Source.Name, m.Consistency = files.Kind, name, "loose"
		return a.packFiles(w.files)
	}
	if w.file {
		path, err := filepath.Abs(name)
		if err != nil {
			return nil, nil, err
		}
		f, err := backup.OpenFile(path)
		if err != nil {
			return nil, nil, err
		}
		m.Source.Kind, m.Source.Name, m.Consistency = "file", path, "offline"
		return f, f.Close, nil
	}
	volume, snapshot, _ := strings.Cut(name, "@")
	api, err := a.hvd()
	if err != nil {
		return nil, nil, err
	}
	stream, body, err := api.Export(ctx, volume, snapshot)
	if err != nil {
		return nil, nil, err
	}
	m.Source.Kind, m.Source.Name, m.Consistency = "volume", volume, "crash"
	return &volumeStream{stream: stream}, body.Close, nil
}

// packFiles packs files into an archive that has no name, as a source.
func (a *app) packFiles(paths []string) (src backup.Source, end func() error, err error) {
	f, err := os.CreateTemp("", "hv-backup-files-") // for this user alone
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	done, err := files.Pack(f, paths)
	if err != nil {
		return nil, nil, err
	}
	for _, path := range done.Skipped {
		a.note("hv-backup: %s is neither a file, a folder nor a link, and left out", path)
	}
	opened, err := backup.OpenFile(f.Name())
	if err != nil {
		return nil, nil, err
	}
	return opened, opened.Close, nil
}

// volumeStream is a volume that hvd exports, as a source of regions in order.
type volumeStream struct {
	stream *transfer.Reader
	piece  transfer.Piece // what is left of the last one
	over   []byte         // that a piece is in which goes over the end of a region
}

// Size implements backup.Source.
func (v *volumeStream) Size() uint64 { return v.stream.Size() }

// Region implements backup.Source. Pieces come in order and cover the volume.
func (v *volumeStream) Region(_ context.Context, p []byte, off uint64) (zero bool, err error) {
	zero = true
	for done := 0; done < len(p); {
		inPlace := false
		if v.piece.Length == 0 {
			lend := func(n int) []byte {
				if inPlace = n <= len(p)-done; inPlace {
					return p[done : done+n]
				}
				v.over = slices.Grow(v.over[:0], n)[:n]
				return v.over
			}
			if v.piece, err = v.stream.Next(lend); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return false, err
			}
		}
		if at := off + uint64(done); v.piece.Off != at {
			return false, fmt.Errorf("the stream goes on at %d instead of %d", v.piece.Off, at)
		}
		n := int(min(uint64(len(p)-done), v.piece.Length))
		if v.piece.Data != nil {
			if zero {
				clear(p[:done])
				zero = false
			}
			if !inPlace {
				copy(p[done:done+n], v.piece.Data)
			}
			v.piece.Data = v.piece.Data[n:]
		} else if !zero {
			clear(p[done : done+n])
		}
		v.piece.Off, v.piece.Length = v.piece.Off+uint64(n), v.piece.Length-uint64(n)
		done += n
	}
	if off+uint64(len(p)) == v.Size() {
		return zero, v.end()
	}
	return zero, nil
}

// end reads the end of the stream: without it the volume is not whole.
func (v *volumeStream) end() error {
	piece, err := v.stream.Next(func(n int) []byte { return make([]byte, n) })
	if err == nil {
		return fmt.Errorf("the stream goes on at %d, behind the end of the volume", piece.Off)
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
