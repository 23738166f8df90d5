package vfs

import (
	"errors"
	"fmt"
	"io/fs"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
)

// FS is a namespace of files: the disk's, or one in memory.
type FS = pebblevfs.FS

// File is an open file or directory of an FS.
type File = pebblevfs.File

// MemFS is a file system in memory; its CrashClone method returns what a power loss could have left of it.
type MemFS = pebblevfs.MemFS

// CrashCloneCfg chooses which unsynced blocks and directory entries a CrashClone keeps.
type CrashCloneCfg = pebblevfs.CrashCloneCfg

// Default is the operating system's file system.
var Default FS = pebblevfs.Default

// NewCrashableMem returns an empty file system in memory that supports CrashClone.
func NewCrashableMem() *MemFS { return pebblevfs.NewCrashableMem() }

// Create makes a new empty file for reading and writing. A file of that name is unlinked first; its open handles keep the old bytes.
// The name is durable only after SyncDir of the directory.
func Create(fsys FS, name string) (File, error) {
	f, err := fsys.Create(name, pebblevfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, asNoSpace(err) // and never a typed nil
	}
	return f, nil
}

// OpenUpdate opens an existing file for reading and writing without truncating it. Unlike FS.OpenReadWrite, which creates a file that does
// not exist, it returns an error that matches fs.ErrNotExist.
func OpenUpdate(fsys FS, name string) (File, error) {
	if _, err := fsys.Stat(name); err != nil {
		return nil, err
	}
	return fsys.OpenReadWrite(name, pebblevfs.WriteCategoryUnspecified)
}

// SyncDir makes the names in a directory durable: files created, renamed and removed before the call.
func SyncDir(fsys FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open directory to sync: %w", err)
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// IsNotExist reports whether err says that a file does not exist.
func IsNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// FreeSpace returns the bytes that this process may still allocate on the file system of dir. File systems in memory return
// errors.ErrUnsupported unless a test has set a figure.
func FreeSpace(fsys FS, dir string) (int64, error) {
	u, err := fsys.GetDiskUsage(dir)
	if errors.Is(err, pebblevfs.ErrUnsupported) {
		return 0, fmt.Errorf("free space of %s: %w", dir, errors.ErrUnsupported)
	}
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(min(u.AvailBytes, 1<<63-1)), nil
}
