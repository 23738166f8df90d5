package blockstore

import (
	"hash/crc32"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// metaFileState is a log or a manifest that Pebble writes, from its first byte on: how long it is and the sum of it, as written and as synced.
type metaFileState struct {
	vfs.File
	name string

	mu   sync.Mutex
	now  metaFile
	sync metaFile // when it was last synced
}

func watchMetaFile(f vfs.File, name string) *metaFileState {
	return &metaFileState{File: f, name: name, now: metaFile{name: name}, sync: metaFile{name: name}}
}

// Write implements vfs.File.
func (f *metaFileState) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Before the write: it may change p.
	before := f.now.sum
	f.now.sum = crc32.Update(before, castagnoli, p)
	n, err := f.File.Write(p)
	if n != len(p) {
		f.now.sum = before // the caller gives the file up
	}
	f.now.size += int64(n)
	return n, err
}

// Sync implements vfs.File.
func (f *metaFileState) Sync() error { return f.synced(f.File.Sync) }

// SyncData implements vfs.File.
func (f *metaFileState) SyncData() error { return f.synced(f.File.SyncData) }

func (f *metaFileState) synced(sync func() error) error {
	was := f.written()
	if err := sync(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if was.size > f.sync.size {
		f.sync = was
	}
	return nil
}

// written is what was written so far.
func (f *metaFileState) written() metaFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// durable is what is synced for sure.
func (f *metaFileState) durable() metaFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sync
}
