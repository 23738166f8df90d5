package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

const (
	temporary = "tmp" // no key begins with it: it is no kind of object
	abandoned = 24 * time.Hour
	// directFrom is from how many bytes on an object is written around the page cache.
	directFrom = 1 << 20
)

// Dir is a directory with objects.
type Dir struct{ root string }

var _ backend.Backend = (*Dir)(nil)

// Create makes the directory, which must be missing or empty (block.ErrExists), and opens it.
func Create(root string) (*Dir, error) {
	_, before := os.Stat(root)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	if errors.Is(before, fs.ErrNotExist) {
		if err := syncFolder(filepath.Dir(root)); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == "config" && !e.IsDir() {
			return nil, fmt.Errorf("%s holds a repository already: %w", root, block.ErrExists)
		}
	}
	for _, e := range entries {
		if e.Name() != "lost+found" { // a file system of its own
			return nil, fmt.Errorf("%s is not empty; give a directory that is, or one that is not there yet: %w", root, block.ErrExists)
		}
	}
	return Open(root)
}

// Open opens a directory, which must exist (block.ErrNotFound).
func Open(root string) (*Dir, error) {
	info, err := os.Stat(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w", root, block.ErrNotFound)
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, fmt.Errorf("%s is no directory: %w", root, block.ErrInvalid)
	}
	d := &Dir{root: root}
	d.tidy()
	return d, nil
}

// tidy removes what crashed writers left, as far as it can: whoever may only read the directory reads it all the same.
func (d *Dir) tidy() {
	entries, _ := os.ReadDir(filepath.Join(d.root, temporary))
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > abandoned {
			_ = os.Remove(filepath.Join(d.root, temporary, e.Name()))
		}
	}
}

// Location returns the path of the directory.
func (d *Dir) Location() string { return d.root }

// Close does nothing: no file stays open.
func (d *Dir) Close() error { return nil }

func (d *Dir) path(key string) (string, error) {
	if err := backend.CheckKey(key); err != nil {
		return "", err
	}
	if strings.HasPrefix(key, temporary+"/") || key == temporary {
		return "", fmt.Errorf("object key %q: %w", key, block.ErrInvalid)
	}
	return filepath.Join(d.root, filepath.FromSlash(key)), nil
}

// Create implements backend.Backend.
func (d *Dir) Create(ctx context.Context, key string, data []byte) error {
	return d.createBy(ctx, key, int64(len(data)), func(_ *os.File, w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// copyBuffer is how much of an object CreateFrom holds at once, bytes.
const copyBuffer = 256 << 10

// CreateFrom is Create for sizeBytes bytes that come from r. If r ends before, that is io.ErrUnexpectedEOF, and nothing is stored; what it has beyond them is left in it. Errors of r are wrapped. The context is looked at before
// anything is read. owner, if it is not empty, is kept with the object: Owner returns it.
func (d *Dir) CreateFrom(ctx context.Context, key string, sizeBytes int64, owner string, r io.Reader) error {
	return d.createBy(ctx, key, sizeBytes, func(f *os.File, w io.Writer) error {
		if owner != "" {
			if err := unix.Fsetxattr(int(f.Fd()), ownerAttribute, []byte(owner), 0); err != nil {
				return fmt.Errorf("keep who stored it, in an extended attribute: %w", err)
			}
		}
		buffer := make([]byte, max(1, min(sizeBytes, copyBuffer)))
		n, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(r, sizeBytes), buffer)
		if err == nil && n < sizeBytes {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
}

// ownerAttribute is where the name of an object's owner is: an extended attribute of its file. It goes where files are copied without these.
const ownerAttribute = "user.hyper-nixos.owner"

// maxOwner bounds the name of an owner, bytes.
const maxOwner = 256

// Owner returns who an object was stored for, empty if that is not known.
func (d *Dir) Owner(key string) (string, error) {
	path, err := d.path(key)
	if err != nil {
		return "", err
	}
	name := make([]byte, maxOwner)
	n, err := unix.Getxattr(path, ownerAttribute, name)
	switch {
	case err == nil:
		return string(name[:n]), nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ERANGE):
		return "", nil
	}
	return "", fmt.Errorf("object %s: %w", key, known(err))
}

// createBy makes an object of so many bytes, which write writes to w; f is its file.
func (d *Dir) createBy(ctx context.Context, key string, sizeBytes int64, write func(f *os.File, w io.Writer) error) error {
	path, err := d.path(key)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("object %s: %w", key, block.ErrExists)
	}
	if err := d.create(path, sizeBytes, write); err != nil {
		return fmt.Errorf("store object %s: %w", key, known(err))
	}
	return nil
}

func (d *Dir) create(path string, sizeBytes int64, write func(f *os.File, w io.Writer) error) error {
	for _, folder := range []string{filepath.Join(d.root, temporary), filepath.Dir(path)} {
		if err := d.folder(folder); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(filepath.Join(d.root, temporary), "object-*")
	if err != nil {
		return err
	}
	if sizeBytes >= directFrom {
		err = writeAround(f, write)
	} else if err = write(f, f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = place(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, remove(f.Name()))
	}
	return syncFolder(filepath.Dir(path))
}

// writeAround writes a file around the page cache, where the file system allows that, and makes it durable. Nobody reads a pack soon, and through the cache it would take the place of what is read, by hvd and by guests.
func writeAround(f *os.File, write func(f *os.File, w io.Writer) error) error {
	again, err := vfs.OpenUpdate(vfs.Default, f.Name())
	if err != nil {
		return err
	}
	w := vfs.NewAppender(again)
	if err = write(f, w); err == nil {
		err = w.Sync()
	}
	return errors.Join(err, w.Close())
}

// folder makes a folder of the root and its parents durable.
func (d *Dir) folder(path string) error {
	if path == d.root {
		return nil
	}
	if err := d.folder(filepath.Dir(path)); err != nil {
		return err
	}
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// place gives a file its name, which nothing may have. Where the file system knows no such rename a link does it.
func place(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		if err = os.Link(from, to); err == nil {
			return os.Remove(from)
		}
	}
	return err
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// known gives errors of the system the names that callers test for.
func known(err error) error {
	switch {
	case errors.Is(err, block.ErrNoSpace): // it has it already
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", block.ErrNotFound, err)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %w", block.ErrExists, err)
	}
	return err
}

// ReadAt implements backend.Backend.
func (d *Dir) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	path, err := d.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("object %s: %w", key, known(err))
	}
	defer f.Close()
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return &block.CorruptError{Source: "object " + key, Offset: off + int64(n), Want: fmt.Sprintf("%d B more", len(p)-n), Got: "its end"}
	}
	return fmt.Errorf("read object %s at %d: %w", key, off, err)
}

// Stat implements backend.Backend.
func (d *Dir) Stat(ctx context.Context, key string) (backend.Object, error) {
	path, err := d.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return backend.Object{}, err
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return backend.Object{}, fmt.Errorf("object %s: %w", key, known(err))
	}
	return backend.Object{Key: key, SizeBytes: info.Size(), Created: info.ModTime()}, nil
}

// Delete implements backend.Backend.
func (d *Dir) Delete(ctx context.Context, key string) error {
	path, err := d.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("delete object %s: %w", key, known(err))
	}
	return syncFolder(filepath.Dir(path))
}
