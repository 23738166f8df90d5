package check

import (
	"io"
	"io/fs"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// readOnlyFS is the file system without any way to change it. Pebble, opened for reading, still wants a lock file; that it gets for nothing, as the store's own lock is held.
type readOnlyFS struct{ vfs.FS }

type noLock struct{}

func (noLock) Close() error { return nil }

func refused(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: os.ErrPermission} }

func (readOnlyFS) Lock(string) (io.Closer, error) { return noLock{}, nil }

func (readOnlyFS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	return nil, refused("create", name)
}

func (readOnlyFS) Link(_, name string) error { return refused("link", name) }

func (readOnlyFS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	return nil, refused("open for writing", name)
}

func (readOnlyFS) Remove(name string) error { return refused("remove", name) }

func (readOnlyFS) RemoveAll(name string) error { return refused("remove", name) }

func (readOnlyFS) Rename(_, name string) error { return refused("rename", name) }

func (readOnlyFS) ReuseForWrite(_, name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	return nil, refused("reuse", name)
}

func (readOnlyFS) MkdirAll(name string, _ os.FileMode) error { return refused("mkdir", name) }
