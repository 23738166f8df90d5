package extentmap

import (
	"context"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// quiet drops Pebble's messages.
type quiet struct{}

func (quiet) Infof(string, ...any)        {}
func (quiet) Errorf(string, ...any)       {}
func (quiet) Fatalf(f string, a ...any)   { panic(fmt.Sprintf(f, a...)) }
func (quiet) Eventf(context.Context, any) {}

func openMem(t testing.TB) *pebble.DB { return openDB(t, "db", vfs.NewMem()) }

func openDB(t testing.TB, dir string, fs vfs.FS) *pebble.DB {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{FS: fs, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// counter gives ids.
type counter struct{ n uint64 }

func (c *counter) next() uint64 { c.n++; return c.n }

// tape is a sink that writes down what it hears.
type tape struct {
	born     []block.ChunkID
	killed   []Extent
	pages    []uint64
	nodes    []uint64
	subtrees []Subtree
}

func (t *tape) Born(c block.ChunkID)                { t.born = append(t.born, c) }
func (t *tape) Killed(e Extent)                     { t.killed = append(t.killed, e) }
func (t *tape) KilledPage(id uint64, _ block.Epoch) { t.pages = append(t.pages, id) }
func (t *tape) KilledNode(id uint64, _ block.Epoch) { t.nodes = append(t.nodes, id) }
func (t *tape) Subtree(s Subtree)                   { t.subtrees = append(t.subtrees, s) }
func (t *tape) silent() bool {
	return len(t.born)+len(t.killed)+len(t.pages)+len(t.nodes)+len(t.subtrees) == 0
}

// edit makes one update in one committed batch.
func edit(t testing.TB, db *pebble.DB, m *Map, root Root, birth block.Epoch, alloc func() uint64, sink Sink, do func(u *Update) error) Root {
	t.Helper()
	b := db.NewBatch()
	u := NewUpdate(m, b, root, birth, alloc, sink)
	if err := do(u); err != nil {
		t.Fatal(err)
	}
	next, err := u.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	return next
}

// lookup returns the extents of a range.
func lookup(t testing.TB, m *Map, r Root, off, n uint64) []Extent {
	t.Helper()
	var all []Extent
	if err := m.Lookup(r, off, n, func(e Extent) bool { all = append(all, e); return true }); err != nil {
		t.Fatal(err)
	}
	return all
}

func chunkAt(off uint64, n uint32, chunk block.ChunkID) Extent {
	return Extent{Off: off, Len: n, Kind: KindChunk, Chunk: chunk, Hash8: [8]byte{byte(chunk), 1}}
}
