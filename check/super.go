package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/super.md
const (
	superSize     = 4096
	superMagic    = "HVSUPER\x00"
	domainKeySize = 32
	domainContext = "hyper-nixos 2026 deduplication domain id"
	superClean    = 1 << 0
	superReady    = 1 << 1
)

// super is a superblock.
type super struct {
	Generation  uint64
	StoreID     block.UUID
	DomainID    [16]byte
	Compat      uint64
	ROCompat    uint64
	Incompat    uint64
	Flags       uint64
	CreatedNs   int64
	BootEpoch   uint64
	OwnerEpoch  uint64
	Cut         cut
	Checkpoints [2][3]uint64 // segment, offset, seq
}

// cut is the parameters of the cutter.
type cut struct {
	Kind    uint32 `json:"kind"` // 1 content-defined, 2 fixed
	Min     uint32 `json:"min"`  // bytes, as the next two
	Avg     uint32 `json:"avg"`
	Max     uint32 `json:"max"`
	Version uint32 `json:"tableVersion"`
}

func (f *fields) cut() cut {
	at := f.at
	c := cut{f.u32(), f.u32(), f.u32(), f.u32(), f.u32()}
	ok := false
	switch c.Kind {
	case 1:
		ok = c.Version == 1 && 1<<10 <= c.Avg && c.Avg <= 1<<20 && 256 <= c.Min && 2*c.Min <= c.Avg && 2*c.Avg <= c.Max && c.Max <= 4<<20
	case 2:
		ok = c.Version == 0 && c.Min == c.Avg && c.Max == c.Avg && block.Size <= c.Avg && c.Avg <= 1<<20
	}
	f.rule(ok && c.Avg&(c.Avg-1) == 0, at, "valid cut parameters", "%+v", c)
	return c
}

func (c cut) String() string {
	if c.Kind == 2 {
		return fmt.Sprintf("fixed:%d", c.Avg)
	}
	return fmt.Sprintf("cdc:%d/%d/%d v%d", c.Min, c.Avg, c.Max, c.Version)
}

func parseSuper(b []byte) (*super, error) {
	f := &fields{b: b}
	f.rule(len(b) == superSize, 0, "4096 B", "%d B", len(b))
	f.magic(superMagic)
	if f.err == nil {
		f.err = checkSum(superSize-4, crc(b[:superSize-4]), binary.LittleEndian.Uint32(b[superSize-4:]))
	}
	f.version(4)
	f.reserved(4)
	s := &super{Generation: f.u64(), StoreID: block.UUID(f.take(16)), DomainID: [16]byte(f.take(16))}
	s.Compat, s.ROCompat, s.Incompat, s.Flags = f.u64(), f.u64(), f.u64(), f.u64()
	s.CreatedNs, s.BootEpoch, s.OwnerEpoch = int64(f.u64()), f.u64(), f.u64()
	s.Cut = f.cut()
	f.reserved(4)
	for i := range s.Checkpoints {
		s.Checkpoints[i] = [3]uint64{f.u64(), f.u64(), f.u64()}
	}
	f.reserved(superSize - 4 - 184)
	f.take(4)
	f.rule(s.ROCompat&^(superHistory|superBitmaps|superHistoryParity) == 0 && s.Incompat&^(superParity|superDisks|superEncrypted|superSnapshots|superStreams|superParts) == 0, 64, "no features that this program does not know", "ro-compat %#x, incompat %#x", s.ROCompat, s.Incompat)
	f.rule(s.Flags&^(superClean|superReady) == 0, 80, "known flags", "%#x", s.Flags)
	f.rule(s.Generation > 0 && s.BootEpoch > 0, 16, "a generation and a boot epoch", "%d, %d", s.Generation, s.BootEpoch)
	for i, p := range s.Checkpoints {
		f.rule(p == [3]uint64{} || p[0] > 0 && segHeaderSize <= p[1] && p[1] < segMaxSize && p[2] > 0, 136+24*i, "a checkpoint in a segment, or none", "%v", p)
	}
	return s, f.end()
}

// readSupers reads both copies. A copy that is missing or damaged is nil.
func readSupers(dir string) (copies [2]*super, errs [2]error, err error) {
	for i := range copies {
		b, err := readSmall(filepath.Join(dir, superName(i)), superSize)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && asFault(err).want == "readable data" {
			return copies, errs, err
		}
		if err == nil {
			copies[i], err = parseSuper(b)
		}
		if err != nil {
			copies[i], errs[i] = nil, err
		}
	}
	return copies, errs, nil
}

func superName(i int) string { return fmt.Sprintf("super.%d", i) }

// readSmall reads a file of at most limit bytes; a longer one is a fault.
func readSmall(path string, limit int) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > int64(limit) {
		return nil, faultf(int64(limit), "the end of the file", "%d B", st.Size())
	}
	return os.ReadFile(path)
}

// checkSuper checks both copies and the domain key. r.super stays nil when there is none to go on with.
func (r *run) checkSuper() error {
	copies, errs, err := readSupers(r.dir)
	if err != nil {
		return err
	}
	missing := 0
	for i, err := range errs {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing++
		case err != nil:
			r.noteErr(superName(i), err)
		default:
			r.expect(copies[i].Generation%2 == uint64(i), superName(i), 16, fmt.Sprintf("a generation that is %d modulo 2", i), copies[i].Generation)
		}
	}
	if missing == 2 {
		return fmt.Errorf("no superblock; is this the data directory of a store?: %w", block.ErrNotFound)
	}
	r.super = newer(copies[0], copies[1])
	if r.super == nil {
		return nil
	}
	if missing == 1 {
		r.expect(r.super.Generation == 1, superName(int(r.super.Generation+1)%2), 0, "the other copy of the superblock", "no file")
	}
	if a, b := copies[0], copies[1]; a != nil && b != nil {
		r.compareSupers(a, b)
	}
	r.rep.StoreID, r.rep.Clean = r.super.StoreID.String(), r.super.Flags&superClean != 0
	r.expect(r.super.Flags&superReady != 0, superName(int(r.super.Generation%2)), 80, "a store that was opened once", "no metadata yet")
	return r.checkDomain()
}

func newer(a, b *super) *super {
	if a == nil || b != nil && b.Generation > a.Generation {
		return b
	}
	return a
}

// compareSupers checks that two copies are of one store and follow one another.
func (r *run) compareSupers(a, b *super) {
	old, cur := a, b
	if a.Generation > b.Generation {
		old, cur = b, a
	}
	unit := superName(int(old.Generation % 2))
	r.expect(cur.Generation == old.Generation+1, unit, 16, fmt.Sprintf("generation %d", cur.Generation-1), old.Generation)
	same := old.StoreID == cur.StoreID && old.DomainID == cur.DomainID && old.Cut == cur.Cut && old.CreatedNs == cur.CreatedNs
	r.expect(same, unit, 24, "the identity, cut and age of the other copy", "others")
	r.expect(old.BootEpoch <= cur.BootEpoch && old.OwnerEpoch <= cur.OwnerEpoch, unit, 96, "epochs not above those of the newer copy", fmt.Sprint(old.BootEpoch, ", ", old.OwnerEpoch))
	for i := range old.Checkpoints {
		r.expect(olderPointer(old.Checkpoints[i], cur.Checkpoints[i]), unit, int64(136+24*i), fmt.Sprintf("checkpoint %v, or an older one", cur.Checkpoints[i]), old.Checkpoints[i])
	}
}

// olderPointer reports whether a pointer to a checkpoint can be an earlier value of another.
func olderPointer(old, cur [3]uint64) bool { return old == cur || old[2] < cur[2] }

// checkDomain reads the domain key and compares its id.
func (r *run) checkDomain() error {
	if r.sealed() {
		if r.opts.Unwrap == nil {
			r.warn(keysName, 0, "a store that is not encrypted, or its key (--key-file)", "sealed bytes: their checksums are checked, not what they hold")
		}
		return r.checkKeyFile()
	}
	if r.opts.Unwrap != nil {
		return errNotEncrypted
	}
	key, err := readSmall(filepath.Join(r.dir, "domain.key"), domainKeySize)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(key) != domainKeySize:
		r.fail("domain.key", 0, "a key of 32 B; chunk hashes are not checked without it", fmt.Sprintf("%d B", len(key)))
		return nil
	case err != nil && asFault(err).want == "readable data":
		return err
	case err != nil:
		r.noteErr("domain.key", err)
		return nil
	}
	r.checkDomainOf(key, "domain.key")
	return nil
}
