package synth

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
)

const (
	indexStateSize = 72
	atStateStore   = 8
	atStateThrough = 24
)

// writeIndex brings the hashes of the chunks into the index of the store in dir (docs/format/index.md).
func writeIndex(ctx context.Context, dir string, c *chunks) error {
	opts := options()
	opts.DisableWAL = true
	db, err := pebble.Open(filepath.Join(dir, "index"), opts)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	l := &loader{db: db, opts: opts, dir: filepath.Join(dir, "synthetic")}
	err = l.load(ctx, c.hintRows)
	if err == nil {
		state := make([]byte, indexStateSize)
		state[0] = 1
		copy(state[atStateStore:], c.store[:])
		binary.LittleEndian.PutUint64(state[atStateThrough:], c.firstID+c.count-1)
		err = db.Set([]byte{'I'}, state, pebble.NoSync)
	}
	if err == nil {
		err = db.Flush()
	}
	return errors.Join(err, db.Close())
}
