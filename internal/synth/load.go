package synth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"
)

// tableBytes is the size of one table, as Pebble's own are on the lowest level of a database of this size.
const tableBytes = 8 << 20

// lowestLevel is where tables go that overlap nothing.
const lowestLevel = 6

// loader brings rows into a database past its log and memtables.
type loader struct {
	db   *pebble.DB
	opts *pebble.Options
	dir  string // of tables on their way, on the file system of the database
}

// load runs each of the writers, which give rows of one prefix in order, and takes in what they wrote.
func (l *loader) load(ctx context.Context, writers ...func(*table) error) (err error) {
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(l.dir)) }()
	tables := make([]*table, len(writers))
	var all errgroup.Group
	for i, rows := range writers {
		t := &table{l: l, ctx: ctx, name: filepath.Join(l.dir, fmt.Sprint(i))}
		tables[i] = t
		all.Go(func() error { return errors.Join(rows(t), t.close()) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	var paths []string
	for _, t := range tables {
		paths = append(paths, t.paths...)
	}
	return l.db.Ingest(ctx, paths)
}

// table writes rows in ascending order of keys into as many files as are needed.
type table struct {
	l     *loader
	ctx   context.Context // of the one load it is made for
	name  string
	w     *sstable.Writer // nil between two files
	paths []string
}

func (t *table) set(key, value []byte) error {
	if t.w == nil {
		if err := t.open(); err != nil {
			return err
		}
	}
	if err := t.w.Set(key, value); err != nil {
		return err
	}
	if t.w.Raw().EstimatedSize() < tableBytes {
		return nil
	}
	return t.close()
}

func (t *table) open() error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	path := fmt.Sprintf("%s.%d.sst", t.name, len(t.paths))
	f, err := vfs.Default.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	t.paths = append(t.paths, path)
	t.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), t.l.opts.MakeWriterOptions(lowestLevel, t.l.db.TableFormat()))
	return nil
}

func (t *table) close() error {
	if t.w == nil {
		return nil
	}
	w := t.w
	t.w = nil
	return w.Close()
}
