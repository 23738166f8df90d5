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
}

// Remove implements vfs.FS.
func (m metaFS) Remove(name string) error {
	if !m.cleaner.mayRemove(name) {
		return nil
	}
	return m.FS.Remove(name)
}

// Create implements vfs.FS.
func (m metaFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(m.PathBase(name), "marker.") {
		if err := syncDir(m.FS, m.PathDir(name)); err != nil {
			return nil, err
		}
	}
	m.cleaner.noteMade(name)
	return m.FS.Create(name, category)
}
