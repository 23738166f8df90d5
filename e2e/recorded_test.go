package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/internal/crashtest"
)

// recordedClients is how many clients of package crashtest there are.
const recordedClients = 2

// recordedConfig bounds what they do. A record of hvd's log takes a quarter of a log file, which is an eighth of the cap.
var recordedConfig = crashtest.Config{VolumeBytes: 4 << 20, RecordBytes: 2 << 20, Volumes: 2, Snapshots: 2, ChangeSnapshots: true}

// recordedTarget runs the operations of one client of package crashtest: data over NBD, the rest by commands.
type recordedTarget struct {
	d     *daemon
	conns map[string]*nbdClient
}

func newRecordedTarget(d *daemon) *recordedTarget {
	return &recordedTarget{d: d, conns: map[string]*nbdClient{}}
}

func (r *recordedTarget) close() {
	for _, c := range r.conns {
		_ = c.conn.Close()
	}
}

// Do implements crashtest.Target.
func (r *recordedTarget) Do(_ context.Context, op *crashtest.Op) error {
	at := op.Volume
	if op.Snapshot != "" {
		at += "@" + op.Snapshot
	}
	switch op.Kind {
	case crashtest.Create:
		return r.command("volume", "create", op.Volume, "--size", strconv.FormatUint(op.Size, 10))
	case crashtest.Snapshot:
		return r.command("snapshot", "create", at)
	case crashtest.SnapshotAll:
		args := []string{"snapshot", "create"}
		for _, v := range op.Volumes {
			args = append(args, v+"@"+op.Snapshot)
		}
		return r.command(args...)
	case crashtest.RenameSnapshot:
		return r.command("snapshot", "rename", at, op.To)
	case crashtest.Protect:
		return r.command("snapshot", "protect", at)
	case crashtest.Unprotect:
		return r.command("snapshot", "unprotect", at)
	case crashtest.DeleteSnapshot:
		return r.command("snapshot", "delete", at)
	case crashtest.Clone:
		return r.command("volume", "clone", at, op.To)
	case crashtest.Rollback:
		return r.detached(op.Volume, "snapshot", "rollback", at)
	case crashtest.Delete:
		return r.detached(op.Volume, "volume", "delete", op.Volume, "--yes")
	case crashtest.Rename:
		return r.detached(op.Volume, "volume", "rename", op.Volume, op.To)
	case crashtest.Resize:
		return r.detached(op.Volume, "volume", "resize", op.Volume, "--shrink", "--size", strconv.FormatUint(op.Size, 10))
	}
	return r.data(op)
}

func (r *recordedTarget) command(args ...string) error {
	if got := r.d.try(args...); got.code != 0 {
		return fmt.Errorf("%s: exit code %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
	return nil
}

// detached runs a command that an attached volume refuses.
func (r *recordedTarget) detached(volume string, args ...string) error {
	if c := r.conns[volume]; c != nil {
		_ = c.conn.Close()
		delete(r.conns, volume)
	}
	if got := r.d.try("volume", "detach", "--force", volume); got.code != 0 && got.code != 3 {
		return fmt.Errorf("detach: exit code %d: %s", got.code, got.stderr)
	}
	return r.command(args...)
}

func (r *recordedTarget) conn(volume string) (*nbdClient, error) {
	if c := r.conns[volume]; c != nil {
		return c, nil
	}
	if err := r.command("volume", "attach", volume); err != nil {
		return nil, err
	}
	c, err := dialNBD(r.d.nbdSocket(), volume)
	if err == nil {
		r.conns[volume] = c
	}
	return c, err
}

func (r *recordedTarget) data(op *crashtest.Op) error {
	c, err := r.conn(op.Volume)
	if err != nil {
		return err
	}
	flags := uint16(0)
	if op.FUA {
		flags = nbdFUA
	}
	switch op.Kind {
	case crashtest.Flush:
		return c.flush()
	case crashtest.Trim:
		return c.do(nbdTrim, flags, op.Ranges[0].Off, int(op.Ranges[0].Len), nil)
	case crashtest.Zero:
		return c.do(nbdZeroes, flags, op.Ranges[0].Off, int(op.Ranges[0].Len), nil)
	}
	for _, w := range op.Batch() {
		if err := c.do(nbdWrite, flags, w.Off, len(w.Data), w.Data); err != nil {
			return err
		}
	}
	return nil
}

// recordedSource reads back what those clients own. Each volume and snapshot is exported once.
type recordedSource struct {
	d    *daemon
	dir  string
	open map[string]*os.File
}

// recordedImage reads all that the recorded clients have.
func (d *daemon) recordedImage() (*crashtest.Image, error) {
	s := &recordedSource{d: d, dir: d.t.TempDir(), open: map[string]*os.File{}}
	img, err := crashtest.ReadImage(s, recordedClients)
	for _, f := range s.open {
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return img, err
}

// List implements crashtest.Source.
func (s *recordedSource) List() ([]crashtest.Listing, error) {
	var all []crashtest.Listing
	var volumes []struct {
		Name      string
		SizeBytes uint64
	}
	s.d.json(&volumes, "volume", "list")
	for _, v := range volumes {
		if strings.Contains(v.Name, "stream") {
			continue
		}
		l := crashtest.Listing{Name: v.Name, SizeBytes: v.SizeBytes, Snapshots: map[string]uint64{}, Protected: map[string]bool{}}
		var snapshots []struct {
			Name      string
			SizeBytes uint64
			Protected bool
		}
		s.d.json(&snapshots, "snapshot", "list", v.Name)
		for _, snap := range snapshots {
			l.Snapshots[snap.Name] = snap.SizeBytes
			l.Protected[snap.Name] = snap.Protected
		}
		all = append(all, l)
	}
	return all, nil
}

// ReadAt implements crashtest.Source.
func (s *recordedSource) ReadAt(volume, snapshot string, p []byte, off uint64) error {
	name := volume
	if snapshot != "" {
		name += "@" + snapshot
	}
	f := s.open[name]
	if f == nil {
		path := filepath.Join(s.dir, name)
		if got := s.d.try("volume", "export", name, path); got.code != 0 {
			return fmt.Errorf("export %s: %s", name, got.stderr)
		}
		var err error
		if f, err = os.Open(path); err != nil {
			return err
		}
		s.open[name] = f
	}
	_, err := f.ReadAt(p, int64(off))
	return err
}
