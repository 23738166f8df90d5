package check

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/scrub.md
const (
	scrubName = "scrub"
	scrubSize = 128
)

type scrubRecord struct {
	State, FindOnly                              uint8
	StoreID                                      block.UUID
	Run                                          uint64
	Started, Ended                               int64
	Segments, Bytes, DamagedSegments, MendedOnes uint64
	Files                                        uint64 // of history
}

func parseScrub(b []byte) (*scrubRecord, error) {
	f := &fields{b: b}
	f.rule(len(b) == scrubSize, 0, "128 B", "%d B", len(b))
	f.magic("HNSCRUB\x00")
	if f.err == nil {
		f.err = checkSum(scrubSize-4, crc(b[:scrubSize-4]), binary.LittleEndian.Uint32(b[scrubSize-4:]))
	}
	version := f.u32()
	f.rule(version == 1 || version == 2, 8, "version 1 or 2", "%d", version)
	s := &scrubRecord{State: f.u8(), FindOnly: f.u8()}
	f.reserved(2)
	s.StoreID = block.UUID(f.take(16))
	s.Run, s.Started, s.Ended = f.u64(), int64(f.u64()), int64(f.u64())
	s.Segments, s.Bytes, s.DamagedSegments, s.MendedOnes = f.u64(), f.u64(), f.u64(), f.u64()
	if version == 2 {
		var volume uint64
		var file uint32
		s.Files, volume, file = f.u64(), f.u64(), f.u32()
		f.rule(s.Files > 0 && volume > 0 && file > 0, 88, "the last file of history that was looked at", "%d, file %08x of volume %d", s.Files, file, volume)
		f.reserved(scrubSize - 4 - 108)
	} else {
		f.reserved(scrubSize - 4 - 88)
	}
	f.take(4)
	f.rule(1 <= s.State && s.State <= 4, 12, "a known state", "%d", s.State)
	f.rule(s.FindOnly <= 1, 13, "0 or 1", "%d", s.FindOnly)
	f.rule(s.Run > 0, 32, "a number", "0")
	f.rule(s.Started > 0, 40, "a moment", "%d", s.Started)
	f.rule((s.Ended != 0) == (s.State > 2), 48, "an end of what has ended", "%d", s.Ended)
	f.rule(s.MendedOnes <= s.DamagedSegments && s.DamagedSegments <= s.Segments+s.Files, 72, "no more mended than damaged, no more damaged than seen", "%d, %d, %d", s.MendedOnes, s.DamagedSegments, s.Segments)
	return s, f.end()
}

// checkScrub reads the record of the last scrub, if there was one.
func (r *run) checkScrub() error {
	b, err := os.ReadFile(filepath.Join(r.dir, scrubName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s, err := parseScrub(b)
	if err != nil {
		r.noteErr(scrubName, err)
		return nil
	}
	r.expect(s.StoreID == r.super.StoreID, scrubName, 16, "store "+r.super.StoreID.String(), s.StoreID)
	return nil
}
