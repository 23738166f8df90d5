package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format (docs/format/gc.md) and must not be changed.
const (
	collectFile    = "gc"
	collectMagic   = "HNGCSTAT"
	collectVersion = 1
	collectSize    = 128
	collectCrcAt   = collectSize - 4
)

// Flags of a record.
const (
	collectPaused  = 1 << 0
	collectAudited = 1 << 1 // the fields of the audit count
	collectCounts  = 1 << 2 // the audit found wrong counts of references
)

// collectRecord is what outlives the process of garbage collection.
type collectRecord struct {
	Paused  bool
	StoreID block.UUID
	Audits  uint64      // in the life of the store; 0: Last is empty
	Last    AuditReport // of it neither memory, passes nor files; of an error only that there was one
}

// errAuditBefore stands for the error of an audit of an earlier run.
const errAuditBefore = "it could not be done, in an earlier run"

func (r *collectRecord) encode() []byte {
	b, le := make([]byte, collectSize), binary.LittleEndian
	copy(b, collectMagic)
	le.PutUint32(b[8:], collectVersion)
	if r.Paused {
		b[12] |= collectPaused
	}
	if r.Audits > 0 && r.Last.Error == "" {
		b[12] |= collectAudited
	}
	if r.Last.WrongReferences {
		b[12] |= collectCounts
	}
	copy(b[16:], r.StoreID[:])
	le.PutUint64(b[32:], r.Audits)
	if r.Audits > 0 {
		l := &r.Last
		for i, v := range []uint64{uint64(l.EndedAt.UnixNano()), uint64(l.Took), l.Chunks, l.References, l.Unreachable, l.UnreachableBytes, l.Missing, l.WrongSegments} {
			le.PutUint64(b[40+8*i:], v)
		}
	}
	le.PutUint32(b[collectCrcAt:], crc32.Checksum(b[:collectCrcAt], castagnoli))
	return b
}

func decodeCollect(b []byte, source string) (r collectRecord, err error) {
	bad := func(at int64, want, got string) (collectRecord, error) {
		return collectRecord{}, &block.CorruptError{Source: source, Offset: at, Want: want, Got: got}
	}
	le := binary.LittleEndian
	if len(b) != collectSize || string(b[:8]) != collectMagic {
		return bad(0, "the record of garbage collection, 128 B", fmt.Sprintf("%d B", len(b)))
	}
	if sum := crc32.Checksum(b[:collectCrcAt], castagnoli); sum != le.Uint32(b[collectCrcAt:]) {
		return bad(collectCrcAt, fmt.Sprintf("crc %08x", sum), fmt.Sprintf("%08x", le.Uint32(b[collectCrcAt:])))
	}
	if v := le.Uint32(b[8:]); v != collectVersion {
		return r, fmt.Errorf("%s has format version %d, this program reads version %d: %w", source, v, collectVersion, block.ErrVersion)
	}
	for i, c := range b[:collectCrcAt] {
		if (i >= 13 && i < 16 || i >= 104) && c != 0 {
			return bad(int64(i), "zero in a reserved byte", fmt.Sprint(c))
		}
	}
	r = collectRecord{Paused: b[12]&collectPaused != 0, StoreID: block.UUID(b[16:32]), Audits: le.Uint64(b[32:])}
	audited := b[12]&collectAudited != 0
	if b[12] >= 1<<3 || audited && r.Audits == 0 || b[12]&collectCounts != 0 && !audited {
		return bad(12, "known flags, and no audit without a number", fmt.Sprintf("%02x, audit %d", b[12], r.Audits))
	}
	if r.Audits == 0 {
		return r, nil
	}
	l := &r.Last
	l.EndedAt, l.Took = time.Unix(0, int64(le.Uint64(b[40:]))).UTC(), time.Duration(le.Uint64(b[48:]))
	if l.Took < 0 {
		return bad(48, "a duration", fmt.Sprint(int64(l.Took)))
	}
	if !audited {
		l.Error = errAuditBefore
		return r, nil
	}
	l.WrongReferences = b[12]&collectCounts != 0
	for i, p := range []*uint64{&l.Chunks, &l.References, &l.Unreachable, &l.UnreachableBytes, &l.Missing, &l.WrongSegments} {
		*p = le.Uint64(b[56+8*i:])
	}
	return r, nil
}

// note changes the record and makes it durable; what of it counts in memory follows.
func (c *collector) note(change func(*collectRecord)) error {
	s := c.s
	c.noting.Lock() // readers of the state do not wait for the disk
	defer c.noting.Unlock()
	c.mu.Lock()
	r := collectRecord{Paused: c.mu.paused, StoreID: s.super.StoreID, Audits: c.mu.audits, Last: c.mu.last}
	c.mu.Unlock()
	change(&r)
	if err := writeFileAtomic(s.fs, s.opts.Dir, s.path(collectFile), r.encode()); err != nil {
		return err
	}
	c.mu.Lock()
	c.mu.paused = r.Paused
	c.mu.Unlock()
	return nil
}

// load takes over what an earlier run left. A record that cannot be read is reported and forgotten: nothing is deleted on its word.
func (c *collector) load() error {
	s := c.s
	b, err := readSmallFile(s.fs, s.path(collectFile), collectSize)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := decodeCollect(b, s.path(collectFile))
	if err == nil && r.StoreID != s.super.StoreID {
		err = &block.CorruptError{Source: s.path(collectFile), Offset: 16, Want: "store " + s.super.StoreID.String(), Got: r.StoreID.String()}
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.paused, c.mu.audits, c.mu.last = r.Paused, r.Audits, r.Last
	return nil
}
