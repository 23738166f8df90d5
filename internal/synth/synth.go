package synth

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kind says what the extents of a map refer to.
type Kind uint8

const (
	// New makes a chunk for each extent, as a row without bytes.
	New Kind = iota
	// Shared refers to the chunks that the store has, one after the other, and from the beginning again.
	Shared
)

// Spec describes the map that a volume shall get.
type Spec struct {
	Kind   Kind
	Volume string // is empty, was never written, has no snapshots and no clones, and is large enough
	// Regions is how many regions are filled, from the volume's beginning on.
	Regions uint64
	// ExtentsPerRegion lie at equal distances in each region.
	ExtentsPerRegion int
	// ChunkBytes is the length of a New chunk. Of a Shared one so much is used that it does not reach the next extent.
	ChunkBytes uint32
	// RegionsAlike is how many neighbouring regions refer to the same Shared chunks; at least 1. It says how many counts a batch of frees changes.
	RegionsAlike uint64
	// Seed of hashes.
	Seed uint64
}

// extents is how many there are in all.
func (s *Spec) extents() uint64 { return s.Regions * uint64(s.ExtentsPerRegion) }

// slot is how far extents are apart, in bytes.
func (s *Spec) slot() uint64 {
	return block.RegionSize / uint64(s.ExtentsPerRegion) / block.Size * block.Size
}

func (s *Spec) validate() error {
	switch {
	case s.Regions == 0 || s.Regions > 1<<32 || s.ExtentsPerRegion < 1 || s.slot() == 0:
		return fmt.Errorf("%d regions of %d extents: %w", s.Regions, s.ExtentsPerRegion, block.ErrInvalid)
	case s.Kind == New && (s.ChunkBytes == 0 || uint64(s.ChunkBytes) > min(s.slot(), maxChunk) || s.extents() > 1<<31):
		return fmt.Errorf("%d chunks of %d B, %d B apart: %w", s.extents(), s.ChunkBytes, s.slot(), block.ErrInvalid)
	case s.Kind == Shared && s.RegionsAlike == 0:
		return fmt.Errorf("chunks shared by no regions: %w", block.ErrInvalid)
	}
	return nil
}

// Write gives a volume of the store in dir its map. The store was closed in order and is not open. After a failure it is of no use.
func Write(ctx context.Context, dir string, spec Spec) error {
	if err := spec.validate(); err != nil {
		return fmt.Errorf("synthetic map: %w", err)
	}
	// The store lists the logs of its Pebble, so as to miss one. The one opened here makes others: with an empty list the store takes them as it finds them.
	if err := os.WriteFile(filepath.Join(dir, "meta.logs"), []byte("HNMETALOGS 2 00000000\n"), 0o600); err != nil {
		return fmt.Errorf("synthetic map: %w", err)
	}
	opts := options()
	db, err := pebble.Open(filepath.Join(dir, "meta"), opts)
	if err != nil {
		return fmt.Errorf("synthetic map: %w", err)
	}
	err = write(ctx, &loader{db: db, opts: opts, dir: filepath.Join(dir, "synthetic")}, spec)
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("synthetic map of %s: %w", spec.Volume, err)
	}
	return nil
}

// options are those of the engine, as far as they shape the tables.
func options() *pebble.Options {
	opts := &pebble.Options{ErrorIfNotExists: true, FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].FilterType = pebble.TableFilter
	}
	opts.EnsureDefaults()
	return opts
}

// quiet drops Pebble's chatter.
type quiet struct{}

func (quiet) Infof(string, ...any)              {}
func (quiet) Errorf(string, ...any)             {}
func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func write(ctx context.Context, l *loader, spec Spec) error {
	v, err := findVolume(l.db, spec.Volume)
	if err != nil {
		return err
	}
	if need := spec.Regions * block.RegionSize; need > v.size {
		return fmt.Errorf("%d B for a map of %d B: %w", v.size, need, block.ErrInvalid)
	}
	c, err := readRow(l.db, []byte{'M', 'c'}, countersSize)
	if err != nil {
		return err
	}
	marks := [][]byte(nil) // rows that a checkpoint may show and that are not as it shows them
	t := &tree{spec: spec, birth: v.head, firstID: field(c, atNextPage) + 1}
	if spec.Kind == New {
		n := newChunks(spec, c)
		t.extent = n.extent
		if err := l.load(ctx, n.chunkRows, n.segmentRows, t.pages, t.nodes); err != nil {
			return err
		}
		if err := writeIndex(ctx, filepath.Dir(l.dir), n); err != nil {
			return err
		}
		n.countIn(c)
	} else {
		s, err := readChunks(l.db, spec)
		if err != nil {
			return err
		}
		t.extent = s.extent
		if err := l.load(ctx, s.countRows, t.pages, t.nodes); err != nil {
			return err
		}
		setField(c, atShared, s.sharedBytes)
		marks = s.counted()
	}
	setField(c, atNextPage, t.lastID())
	v.setRoot(t)
	if err := v.sumRows(l.db, c); err != nil {
		return err
	}
	b := l.db.NewBatch()
	defer b.Close()
	if err := errors.Join(b.Set(v.headKey(), v.headRow, nil), b.Set([]byte{'M', 'c'}, c, nil)); err != nil {
		return err
	}
	for _, changed := range append(marks, v.headKey()) {
		if err := b.Set(append([]byte{'K', 0x7f, 0xff, 0xff, 0xff}, changed...), nil, nil); err != nil {
			return err
		}
	}
	return b.Commit(pebble.Sync)
}

func field(row []byte, at int) uint64 { return binary.LittleEndian.Uint64(row[at:]) }

func setField(row []byte, at int, v uint64) { binary.LittleEndian.PutUint64(row[at:], v) }
