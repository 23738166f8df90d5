package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// superDisks is the incompat feature: segments may lie on several disks, whole or in shards.
const superDisks = 1 << 1

// Bytes of a shard (docs/format/shard.md).
const (
	shardHead   = 4096
	shardColumn = 4096
	shardSums   = shardHead/4 - 1 // checksums of a page
	shardSuffix = ".shard"
)

// shardFile is one shard of a segment, as its name says.
type shardFile struct {
	path        string // for messages
	k, m, index int
	size        int64
}

// parseShardFile reads the name of a shard of the segment whose key begins with stem.
func parseShardFile(stem, name string) (s shardFile, ok bool) {
	rest, ok := strings.CutPrefix(name, stem+".")
	if !ok {
		return s, false
	}
	if _, err := fmt.Sscanf(rest, "%d+%d.%02d.%08x"+shardSuffix, &s.k, &s.m, &s.index, &s.size); err != nil {
		return s, false
	}
	ok = s.k >= 1 && s.m >= 1 && s.m <= 8 && s.k+s.m <= 31 && s.index >= 0 && s.index < s.k+s.m && s.size > 0 && s.size <= segMaxSize
	return s, ok && rest == fmt.Sprintf("%d+%d.%02d.%08x%s", s.k, s.m, s.index, s.size, shardSuffix)
}

// shardOwner is the path of the segment that a shard belongs to.
func shardOwner(path string) string {
	name := filepath.Base(path)
	if len(name) < 25 || !strings.HasSuffix(name, shardSuffix) {
		return ""
	}
	if _, ok := parseShardFile(name[:25], name); !ok {
		return ""
	}
	return filepath.Join(filepath.Dir(path), name[:25]+".seg")
}

// roots are the directories of all disks.
func (r *run) roots() []string { return append([]string{r.dir}, r.opts.Disks...) }

// wholeCopies reads the whole copies of a segment. They are equal as far as the row goes.
func (r *run) wholeCopies(row *segmentRow, p placement, buf []byte) (b []byte, unit string, err error) {
	path := segmentPath(p.Key)
	for i, root := range r.roots() {
		at := filepath.Join(root, path)
		name := path
		if i > 0 {
			name = at
		}
		if b == nil {
			if b, err = readSegment(at, buf); err == nil {
				unit = name
				continue
			}
			if b = nil; !errors.Is(err, fs.ErrNotExist) {
				return nil, name, err
			}
			continue
		}
		other, err := os.ReadFile(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, name, err
		}
		n := min(int(row.Size), len(b))
		r.expect(len(other) >= n && string(other[:min(n, len(other))]) == string(b[:n]), name, 0, fmt.Sprintf("%d B as in %s", n, unit), "other bytes")
	}
	if b == nil {
		return nil, path, fs.ErrNotExist
	}
	return b, unit, nil
}

// fromShards puts a segment together from its shards, each of which is checked, parity too.
func (r *run) fromShards(row *segmentRow, p placement) (b []byte, err error) {
	sets := map[[3]int64]map[int]shardFile{}
	stem := strings.TrimSuffix(p.Key, ".seg")
	for _, root := range r.roots() {
		folder := filepath.Dir(filepath.Join(root, segmentPath(p.Key)))
		entries, err := os.ReadDir(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if s, ok := parseShardFile(stem, e.Name()); ok {
				s.path = filepath.Join(folder, e.Name())
				key := [3]int64{int64(s.k), int64(s.m), s.size}
				if sets[key] == nil {
					sets[key] = map[int]shardFile{}
				}
				sets[key][s.index] = s
			}
		}
	}
	if len(sets) == 0 {
		return nil, fs.ErrNotExist
	}
	r.expect(r.super.Incompat&superDisks != 0, unit64(tableSegment, row.ID), 48, "no shards without the feature in the superblock", "some")
	r.expect(row.State == segmentSealed, unit64(tableSegment, row.ID), 48, "no shards of an open segment", "some")
	for _, set := range sets {
		got, err := r.shardSet(row, p, set)
		if err != nil {
			return nil, err
		}
		if got != nil {
			b = got
		}
	}
	return b, nil
}

// shardSet checks the shards that were cut alike and returns the segment; nil if data is missing.
func (r *run) shardSet(row *segmentRow, p placement, set map[int]shardFile) ([]byte, error) {
	var any shardFile
	for _, any = range set {
		break
	}
	columns := int((any.size + shardColumn - 1) / shardColumn)
	stripes := (columns + any.k - 1) / any.k
	shards := make([][]byte, any.k+any.m)
	footer, whole := map[uint32]bool{}, true
	for i := range shards {
		s, there := set[i]
		if !there {
			r.fail(segmentPath(p.Key), 0, fmt.Sprintf("shard %d of %d+%d on one of the disks that were named", i, any.k, any.m), "no file; hvd makes it anew")
			whole = whole && i >= any.k
			continue
		}
		b, err := os.ReadFile(s.path)
		if err != nil {
			return nil, err
		}
		if shards[i] = r.shard(row, s, b, stripes, footer); shards[i] == nil {
			whole = whole && i >= any.k
		}
	}
	r.expect(len(footer) < 2, segmentPath(p.Key), 0, "shards of one segment", "shards that name different footers")
	if !whole {
		return nil, nil
	}
	b := slices.Concat(shards[:any.k]...)
	r.expect(allZero(b[any.size:]), segmentPath(p.Key), any.size, "zeroes behind the segment in its last shards", "other bytes")
	b = b[:any.size]
	if len(footer) == 1 {
		r.expect(len(b) >= 4 && footer[binary.LittleEndian.Uint32(b[len(b)-4:])], segmentPath(p.Key), any.size-4, "the footer that the shards name", "another one")
	}
	r.shardParity(set, any, shards)
	return b, nil
}

// shard checks one shard and returns its columns; nil if it is not what it shall be.
func (r *run) shard(row *segmentRow, s shardFile, b []byte, stripes int, footer map[uint32]bool) []byte {
	pages := (stripes + shardSums - 1) / shardSums
	first := shardHead * (1 + pages)
	if want := first + stripes*shardColumn; !r.expect(len(b) == want, s.path, int64(min(len(b), want)), fmt.Sprintf("%d B of a shard", want), fmt.Sprintf("%d B", len(b))) {
		return nil
	}
	head := b[:shardHead]
	le := binary.LittleEndian
	if !r.expect(string(head[:8]) == "HNSHARD\n" && le.Uint32(head[shardHead-4:]) == crc(head[:shardHead-4]), s.path, 0, "the head of a shard with its crc", "other bytes") {
		return nil
	}
	got := fmt.Sprintf("version %d, %d+%d, shard %d, store %v, segment %d.%d of %d B", le.Uint32(head[8:]), head[12], head[13], head[14], block.UUID(head[16:32]), le.Uint64(head[32:]), le.Uint32(head[40:]), le.Uint64(head[48:]))
	want := fmt.Sprintf("version 1, %d+%d, shard %d, store %v, segment %d.%d of %d B", s.k, s.m, s.index, r.super.StoreID, row.ID, row.Generation, s.size)
	r.expect(head[15] == 0 && allZero(head[56:shardHead-4]), s.path, 15, "zeroes in reserved bytes", "other bytes")
	if !r.expect(got == want, s.path, 8, want, got) {
		return nil
	}
	footer[le.Uint32(head[44:])] = true
	good := true
	for t := range stripes {
		page := b[shardHead*(1+t/shardSums):][:shardHead]
		if t%shardSums == 0 && !r.expect(le.Uint32(page[shardHead-4:]) == crc(page[:shardHead-4]), s.path, int64(shardHead*(1+t/shardSums)), "a page of checksums with its crc", "other bytes") {
			return nil
		}
		off := first + t*shardColumn
		sum, have := le.Uint32(page[4*(t%shardSums):]), crc(b[off:off+shardColumn])
		good = r.expect(sum == have, s.path, int64(off), fmt.Sprintf("crc %08x of a column", sum), fmt.Sprintf("%08x", have)) && good
	}
	if !good {
		return nil
	}
	return b[first:]
}

// shardParity computes the parity shards anew and compares them.
func (r *run) shardParity(set map[int]shardFile, s shardFile, shards [][]byte) {
	if r.field == nil {
		r.field = newGalois()
	}
	generator := r.field.generator(s.k, s.m)
	for j := range s.m {
		if shards[s.k+j] == nil {
			continue
		}
		coded := make([]byte, len(shards[0]))
		for i := range s.k {
			r.field.add(coded, shards[i], generator[j][i])
		}
		r.expect(string(coded) == string(shards[s.k+j]), set[s.k+j].path, shardHead, "the parity of the data shards", "other bytes")
	}
}
