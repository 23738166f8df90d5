package blockstore

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// metaFS is the file system as Pebble gets it. Pebble 2.1 names its manifest in a marker file and makes the names of both durable with one sync, so on a file system that
// does not keep the order of names a power loss can leave a marker of a manifest that is not there (cockroachdb/pebble pull request 5915). Here the names so far are
// durable before a marker is made.
type metaFS struct {
	vfs.FS
	cleaner *metaCleaner
	logs    *metaLogs // nil where nothing is kept of them
}

// Remove implements vfs.FS.
func (m metaFS) Remove(name string) error {
	if !m.cleaner.mayRemove(name) {
		return nil
	}
	if base := m.PathBase(name); m.logs != nil && isMetaLog(base) {
		if err := m.logs.end(base); err != nil {
			return err
		}
		m.logs.reuse.Lock()
		defer m.logs.reuse.Unlock()
	}
	return m.FS.Remove(name)
}

// ReuseForWrite implements vfs.FS.
func (m metaFS) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if base := m.PathBase(name); m.logs != nil && isMetaLog(base) {
		// The old one is let go before it becomes another.
		if err := m.logs.end(m.PathBase(old)); err != nil {
			return nil, err
		}
		return m.beginLog(base, func() (vfs.File, error) {
			m.cleaner.noteMade(name)
			m.logs.reuse.Lock()
			defer m.logs.reuse.Unlock()
			return m.FS.ReuseForWrite(old, name, category)
		})
	}
	m.cleaner.noteMade(name)
	return m.FS.ReuseForWrite(old, name, category)
}

// Create implements vfs.FS.
func (m metaFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	base := m.PathBase(name)
	if strings.HasPrefix(base, "marker.") {
		if err := syncDir(m.FS, m.PathDir(name)); err != nil {
			return nil, err
		}
	}
	create := func() (vfs.File, error) {
		m.cleaner.noteMade(name)
		return m.FS.Create(name, category)
	}
	switch {
	case m.logs == nil:
		return create()
	case isMetaLog(base):
		return m.beginLog(base, create)
	case strings.HasPrefix(base, manifestMarker):
		f, err := create()
		if err == nil {
			m.logs.markManifest(base)
		}
		return f, err
	case isMetaManifest(base):
		f, err := create()
		if err != nil {
			return nil, err
		}
		w := watchMetaFile(f, base)
		m.logs.beginManifest(w)
		return w, nil
	}
	return create()
}

// beginLog notes that a log is begun before it is.
func (m metaFS) beginLog(base string, create func() (vfs.File, error)) (vfs.File, error) {
	w := watchMetaFile(nil, base)
	if err := m.logs.begin(w); err != nil {
		return nil, err
	}
	f, err := create()
	if err != nil {
		return nil, err
	}
	w.File = f
	return w, nil
}

// OpenDir implements vfs.FS.
func (m metaFS) OpenDir(name string) (vfs.File, error) {
	f, err := m.FS.OpenDir(name)
	if err != nil || m.logs == nil {
		return f, err
	}
	return metaFolder{f, m.logs}, nil
}

// metaFolder is Pebble's folder, whose sync makes markers durable.
type metaFolder struct {
	vfs.File
	logs *metaLogs
}

// Sync implements vfs.File.
func (d metaFolder) Sync() error {
	err := d.File.Sync()
	if err == nil {
		d.logs.dirSynced()
	}
	return err
}
