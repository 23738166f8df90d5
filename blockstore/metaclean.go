package blockstore

import (
	"path/filepath"
	"strings"
	"sync"
)

// metaCleaner holds back the deletion of Pebble's files until the metadata was found whole. Pebble would otherwise delete at its open every table that a damaged manifest
// does not name, and with it the last copy of maps.
type metaCleaner struct {
	decided chan struct{} // closed when trusted is known
	trusted bool

	mu   sync.Mutex
	made map[string]bool // files of this run, as long as nothing is decided
}

func newMetaCleaner() *metaCleaner {
	return &metaCleaner{decided: make(chan struct{}), made: map[string]bool{}}
}

// trustedCleaner holds nothing back.
func trustedCleaner() *metaCleaner {
	c := newMetaCleaner()
	c.trust(true)
	return c
}

// trust says whether the metadata is whole. The first call counts; without one Pebble's Close would not return.
func (c *metaCleaner) trust(ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made != nil {
		c.trusted, c.made = ok, nil
		close(c.decided)
	}
}

// noteMade is told of every file that Pebble creates.
func (c *metaCleaner) noteMade(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made != nil {
		c.made[filepath.Base(path)] = true
	}
}

// mayRemove waits until it is known whether a file may go, and says so. Files of earlier runs are removed by a goroutine of Pebble that may wait; what its open removes by
// itself are old markers, and files that this run made.
func (c *metaCleaner) mayRemove(path string) bool {
	name := filepath.Base(path)
	if !strings.HasSuffix(name, ".sst") && !strings.HasSuffix(name, ".blob") && !strings.HasSuffix(name, ".log") && !strings.HasPrefix(name, "MANIFEST-") {
		return true
	}
	c.mu.Lock()
	own := c.made[name]
	c.mu.Unlock()
	if own {
		return true
	}
	<-c.decided
	return c.trusted
}
