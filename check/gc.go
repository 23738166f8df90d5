package check

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/gc.md
const (
	gcName = "gc"
	gcSize = 128

	gcPaused  = 1 << 0
	gcAudited = 1 << 1
	gcCounts  = 1 << 2
)

type gcRecord struct {
	Flags                                                                     uint8
	StoreID                                                                   block.UUID
	Audits                                                                    uint64
	Ended, Took                                                               int64
	Chunks, References, Unreachable, UnreachableBytes, Missing, WrongSegments uint64
}

func parseGC(b []byte) (*gcRecord, error) {
	f := &fields{b: b}
	f.rule(len(b) == gcSize, 0, "128 B", "%d B", len(b))
	f.magic("HNGCSTAT")
	if f.err == nil {
		f.err = checkSum(gcSize-4, crc(b[:gcSize-4]), binary.LittleEndian.Uint32(b[gcSize-4:]))
	}
	f.version(4)
	g := &gcRecord{Flags: f.u8()}
	f.reserved(3)
	g.StoreID, g.Audits, g.Ended, g.Took = block.UUID(f.take(16)), f.u64(), int64(f.u64()), int64(f.u64())
	g.Chunks, g.References, g.Unreachable, g.UnreachableBytes, g.Missing, g.WrongSegments = f.u64(), f.u64(), f.u64(), f.u64(), f.u64(), f.u64()
	f.reserved(gcSize - 4 - 104)
	f.take(4)
	audited := g.Flags&gcAudited != 0
	f.rule(g.Flags < 1<<3, 12, "known flags", "%02x", g.Flags)
	f.rule(!audited || g.Audits > 0, 12, "no result without an audit", "%02x", g.Flags)
	f.rule(audited || g.Flags&gcCounts == 0, 12, "wrong counts only of an audit that could be done", "%02x", g.Flags)
	f.rule((g.Ended != 0) == (g.Audits > 0), 40, "a moment of an audit alone", "%d", g.Ended)
	f.rule(g.Took >= 0, 48, "a duration", "%d", g.Took)
	f.rule(g.References >= g.Chunks || g.Missing > 0 || !audited, 64, "a reference to each chunk", "%d for %d", g.References, g.Chunks)
	return g, f.end()
}

// checkGC reads the record of garbage collection, if there is one.
func (r *run) checkGC() error {
	b, err := os.ReadFile(filepath.Join(r.dir, gcName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	g, err := parseGC(b)
	if err != nil {
		r.noteErr(gcName, err)
		return nil
	}
	r.expect(g.StoreID == r.super.StoreID, gcName, 16, "store "+r.super.StoreID.String(), g.StoreID)
	return nil
}
