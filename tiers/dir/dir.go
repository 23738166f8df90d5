package dir

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// Backend is a directory of segments.
type Backend struct {
	fs   vfs.FS
	root string
	mu   struct {
		sync.Mutex
		made  [256]bool // folders known to exist
		dirty [256]bool // folders with creations or deletions that Sync has to make durable
	}
}

var _ tiers.Backend = (*Backend)(nil)

// Open returns the backend of a directory, which is created if it is missing; its own name is then durable, those of missing parents are not.
func Open(fsys vfs.FS, root string) (*Backend, error) {
	_, err := fsys.Stat(root)
	if vfs.IsNotExist(err) {
		if err = fsys.MkdirAll(root, 0o700); err == nil {
			err = vfs.SyncDir(fsys, fsys.PathDir(root))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open segment directory: %w", err)
	}
	return &Backend{fs: fsys, root: root}, nil
}

// path returns where a key lives and which of the 256 folders that is.
func (b *Backend) path(key string) (name string, folder uint8, err error) {
	named := key
	if segment, ok := tiers.ParseParityKey(key); ok {
		named = segment
	}
	id, _, ok := tiers.ParseSegmentKey(named)
	if !ok {
		return "", 0, fmt.Errorf("segment key %q: %w", key, block.ErrInvalid)
	}
	folder = uint8(id)
	return b.fs.PathJoin(b.folder(folder), key), folder, nil
}

func (b *Backend) folder(i uint8) string { return b.fs.PathJoin(b.root, fmt.Sprintf("%02x", i)) }

// Create implements tiers.Backend.
func (b *Backend) Create(key string) (tiers.Writer, error) {
	name, folder, err := b.path(key)
	if err != nil {
		return nil, err
	}
	if err := b.makeFolder(folder); err != nil {
		return nil, err
	}
	if _, err := b.fs.Stat(name); err == nil {
		return nil, fmt.Errorf("create %s: %w", name, block.ErrExists)
	} else if !vfs.IsNotExist(err) {
		return nil, err
	}
	f, err := vfs.Create(b.fs, name)
	if err != nil {
		return nil, err
	}
	b.touch(folder)
	return &writer{b: b, f: vfs.NewAppender(f), folder: folder}, nil
}

// makeFolder makes sure that a folder exists for good.
func (b *Backend) makeFolder(i uint8) error {
	b.mu.Lock()
	made := b.mu.made[i]
	b.mu.Unlock()
	if made {
		return nil
	}
	if err := b.fs.MkdirAll(b.folder(i), 0o700); err != nil {
		return err
	}
	if err := vfs.SyncDir(b.fs, b.root); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.made[i] = true
	return nil
}

func (b *Backend) touch(folder uint8) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.dirty[folder] = true
}

// Update implements tiers.Backend.
func (b *Backend) Update(key string) (tiers.Updater, error) {
	name, _, err := b.path(key)
	if err != nil {
		return nil, err
	}
	f, err := vfs.OpenUpdate(b.fs, name)
	if err != nil {
		return nil, notFound(err)
	}
	return &updater{handle{f}}, nil
}

// Open implements tiers.Backend.
func (b *Backend) Open(key string) (tiers.Reader, error) {
	name, _, err := b.path(key)
	if err != nil {
		return nil, err
	}
	f, err := b.fs.Open(name)
	if err != nil {
		return nil, notFound(err)
	}
	return &handle{f}, nil
}

// Delete implements tiers.Backend.
func (b *Backend) Delete(key string) error {
	name, folder, err := b.path(key)
	if err != nil {
		return err
	}
	err = b.fs.Remove(name)
	if vfs.IsNotExist(err) {
		return nil
	}
	if err == nil {
		b.touch(folder)
	}
	return err
}

// List implements tiers.Backend.
func (b *Backend) List(visit func(key string, sizeBytes int64) error) error {
	for i := range 256 {
		folder := b.folder(uint8(i))
		names, err := b.fs.List(folder)
		if err != nil && !vfs.IsNotExist(err) {
			return fmt.Errorf("list segments: %w", err)
		}
		for _, key := range names {
			if id, _, ok := tiers.ParseSegmentKey(key); !ok || uint8(id) != uint8(i) {
				continue
			}
			st, err := b.fs.Stat(b.fs.PathJoin(folder, key))
			if vfs.IsNotExist(err) {
				continue // deleted meanwhile
			}
			if err != nil {
				return fmt.Errorf("list segments: %w", err)
			}
			if err := visit(key, st.Size()); err != nil {
				return err
			}
		}
	}
	return nil
}

// Capacity implements tiers.Backend with the figures of the file system.
func (b *Backend) Capacity() (tiers.Capacity, error) {
	free, err := vfs.FreeSpace(b.fs, b.root)
	if err != nil {
		return tiers.Capacity{}, err
	}
	u, err := b.fs.GetDiskUsage(b.root)
	if err != nil {
		return tiers.Capacity{}, fmt.Errorf("size of %s: %w", b.root, err)
	}
	return tiers.Capacity{TotalBytes: int64(min(u.TotalBytes, math.MaxInt64)), FreeBytes: free}, nil
}

// Sync implements tiers.Backend.
func (b *Backend) Sync() error {
	var errs []error
	for i := range 256 {
		errs = append(errs, b.syncFolder(uint8(i)))
	}
	return errors.Join(errs...)
}

// syncFolder makes the names in a folder durable if any has changed.
func (b *Backend) syncFolder(i uint8) error {
	b.mu.Lock()
	dirty := b.mu.dirty[i]
	b.mu.dirty[i] = false
	b.mu.Unlock()
	if !dirty {
		return nil
	}
	err := vfs.SyncDir(b.fs, b.folder(i))
	if err != nil {
		b.touch(i)
	}
	return err
}

// notFound adds block.ErrNotFound to an error that means it.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", block.ErrNotFound, err)
	}
	return err
}
