package dir

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

var _ tiers.Mender = (*Backend)(nil)

// replaceSuffix is added to the name of a file that does not count yet.
const replaceSuffix = ".tmp"

// Replace implements tiers.Mender.
func (b *Backend) Replace(key string) (tiers.Replacement, error) {
	name, folder, err := b.path(key)
	if err != nil {
		return nil, err
	}
	if err := b.makeFolder(folder); err != nil {
		return nil, err
	}
	f, err := vfs.Create(b.fs, name+replaceSuffix)
	if err != nil {
		return nil, err
	}
	return &replacement{b: b, f: f, name: name, folder: folder}, nil
}

// replacement is a file beside the one whose place it will take.
type replacement struct {
	b      *Backend
	f      vfs.File // nil when it has ended
	name   string
	folder uint8
}

// ReadAt implements io.ReaderAt.
func (r *replacement) ReadAt(p []byte, off int64) (int, error) { return r.f.ReadAt(p, off) }

// WriteAt implements io.WriterAt.
func (r *replacement) WriteAt(p []byte, off int64) (int, error) {
	if err := vfs.WriteVec(r.f, [][]byte{p}, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Commit implements tiers.Replacement.
func (r *replacement) Commit() error {
	err := r.f.Sync()
	if err == nil {
		err = r.b.fs.Rename(r.name+replaceSuffix, r.name)
	}
	if err != nil {
		return errors.Join(err, r.Discard())
	}
	err = r.f.Close()
	r.f = nil
	if e := vfs.SyncDir(r.b.fs, r.b.folder(r.folder)); e != nil {
		r.b.touch(r.folder)
		err = errors.Join(err, e)
	}
	return err
}

// Discard implements tiers.Replacement.
func (r *replacement) Discard() error {
	if r.f == nil {
		return nil
	}
	err := r.f.Close()
	r.f = nil
	return errors.Join(err, r.b.fs.Remove(r.name+replaceSuffix))
}

// ListBeside implements tiers.Mender.
func (b *Backend) ListBeside(visit func(parityKey string) error) error {
	for i := range 256 {
		folder := b.folder(uint8(i))
		names, err := b.fs.List(folder)
		if err != nil && !vfs.IsNotExist(err) {
			return fmt.Errorf("list sidecars: %w", err)
		}
		for _, name := range names {
			key, temporary := strings.CutSuffix(name, replaceSuffix)
			if path, _, err := b.path(key); err != nil || path != b.fs.PathJoin(folder, key) {
				continue
			}
			if temporary {
				err = b.fs.Remove(b.fs.PathJoin(folder, name))
			} else if _, ok := tiers.ParseParityKey(key); ok {
				err = visit(key)
			}
			if err != nil && !vfs.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}
