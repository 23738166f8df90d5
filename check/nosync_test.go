package check

import "github.com/cockroachdb/pebble/v2/vfs"

// noSync is the file system without waits for the device, for tests that change one row after another.
type noSync struct{ vfs.FS }

type noSyncFile struct{ vfs.File }

func (noSyncFile) Sync() error                { return nil }
func (noSyncFile) SyncData() error            { return nil }
func (noSyncFile) SyncTo(int64) (bool, error) { return false, nil }

func wrapped(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return noSyncFile{f}, nil
}

func (n noSync) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return wrapped(n.FS.Create(name, c))
}

func (n noSync) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return wrapped(n.FS.OpenReadWrite(name, c, o...))
}

func (n noSync) OpenDir(name string) (vfs.File, error) { return wrapped(n.FS.OpenDir(name)) }

func (n noSync) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return wrapped(n.FS.ReuseForWrite(from, to, c))
}
