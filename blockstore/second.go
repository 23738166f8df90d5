package blockstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/secondcopy"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Frames that very many references lead to have a second copy (package secondcopy): one bad sector more than parity reaches, or one lost file, would otherwise take a block from every guest that was made from the same
// image. The keeper chooses them now and then; a read that meets damage, and a repair, take their bytes.

const (
	// secondEvery is how often the choice is looked at again.
	secondEvery = time.Hour
	// secondRefs is the least number of references of a chunk whose frame gets a second copy.
	secondRefs = 64
	// secondPart is the most that second copies take, as a divisor of what is stored, and secondLeast what they may take in any case, bytes.
	secondPart  = 100
	secondLeast = 16 << 20
	// secondChange is how much of a choice must be new, as a divisor of it, for the file to be made anew.
	secondChange = 16
	// secondPiece is after how many rows of reference counts, of refRowSize bytes each, the choice waits for its budget.
	secondPiece = 4096
	refRowSize  = 17
)

// seconds are the second copies. The keeper's goroutine makes them, reads of guests use them.
//
// There is one file, but for a while there may be one on each disk: one that vanishes takes its file with it, another is begun elsewhere, and then it comes back. What a segment of some number and generation holds never
// changes, so of two copies of a frame none is older; but either file may have frames that the other one lacks. So all are read until one has all that is wanted.
type seconds struct {
	next    time.Time     // when the choice is looked at again; of the keeper
	choices atomic.Uint64 // that were looked at

	mu    sync.RWMutex // held while the files are used
	files []secondFile // the one in the directory where the next is made comes first, if it is there
}

type secondFile struct {
	*secondcopy.File
	dir string
}

// secondDir is the directory of the file: on the last disk that is there, as the log and open segments begin with the first. An empty directory where a disk is missed may be one that is not mounted: what would be written there
// would lie on the wrong disk, and be hidden when the right one comes back.
func (s *Store) secondDir() string { return s.secondDirs()[0] }

// secondDirs are the directories that a file may lie in, that of the next one first.
func (s *Store) secondDirs() (dirs []string) {
	disks := s.allDisks()
	for i := len(disks) - 1; i > 0; i-- {
		if s.inUse(disks[i]) {
			dirs = append(dirs, disks[i])
		}
	}
	return append(dirs, disks[0])
}

// openSeconds opens what earlier runs have copied. What cannot be read is made anew.
func (k *keeper) openSeconds() {
	var files []secondFile
	for _, dir := range k.s.secondDirs() {
		f, err := secondcopy.Open(k.s.fs, dir, k.s.super.StoreID)
		switch {
		case err == nil:
			files = append(files, secondFile{f, dir})
		case !errors.Is(err, block.ErrNotFound):
			k.s.report("open the second copies, which are made anew", fmt.Errorf("%s: %w", dir, err))
		}
	}
	k.seconds.set(files)
}

// set exchanges the files.
func (c *seconds) set(files []secondFile) {
	c.mu.Lock()
	was := c.files
	c.files = files
	c.mu.Unlock()
	for _, f := range was {
		_ = f.Close()
	}
}

// read reads the copy of a frame and reports whether there is one.
func (c *seconds) read(dst []byte, p secondcopy.Place) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.ContainsFunc(c.files, func(f secondFile) bool { return f.Read(dst, p) })
}

// of returns the frames of a segment that have a copy.
func (c *seconds) of(row *segmentRow) []secondcopy.Place {
	return c.all(func(f secondFile) []secondcopy.Place { return f.Of(row.ID, row.Generation) })
}

// places returns all frames that have a copy, in the order of segments.
func (c *seconds) places() []secondcopy.Place {
	return c.all(func(f secondFile) []secondcopy.Place { return f.Places() })
}

func (c *seconds) all(of func(secondFile) []secondcopy.Place) (places []secondcopy.Place) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, f := range c.files {
		places = append(places, of(f)...)
	}
	if len(c.files) > 1 {
		slices.SortFunc(places, comparePlaces)
		places = slices.Compact(places)
	}
	return places
}

// bytes is what the copies take.
func (c *seconds) bytes() (n uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, f := range c.files {
		n += f.Bytes()
	}
	return n
}

// stepSecond looks now and then whether other frames should have a second copy, and makes the copies then.
func (k *keeper) stepSecond(ctx context.Context) (bool, error) {
	if time.Now().Before(k.seconds.next) {
		return false, nil
	}
	k.seconds.next = time.Now().Add(k.s.opts.secondEvery)
	k.openSeconds() // a disk may have gone, or come back with a file of its own
	dir := k.s.secondDir()
	moved := k.seconds.elsewhere(dir)
	want, bytes, err := k.chooseSeconds(ctx)
	defer k.seconds.choices.Add(1)
	if err != nil || !moved && !k.secondsDiffer(want, bytes) {
		return false, err
	}
	if !k.room(bytes) {
		return false, nil
	}
	if want, err = k.keepOnly(ctx, want); err != nil || !moved && slices.Equal(want, k.seconds.places()) {
		return false, err
	}
	err = secondcopy.Write(ctx, k.s.fs, dir, k.s.super.StoreID, want, k.readSecond)
	if err == nil {
		k.counts.written.Add(bytes)
		k.removeSeconds(dir)
		k.openSeconds()
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("make second copies: %w", err)
	}
	return false, err
}

// elsewhere reports whether there is a file in another directory than the next one is made in.
func (c *seconds) elsewhere(dir string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.ContainsFunc(c.files, func(f secondFile) bool { return f.dir != dir })
}

// removeSeconds removes the files that were read and lie elsewhere: that in dir has all that is wanted of them, durably.
func (k *keeper) removeSeconds(dir string) {
	k.seconds.mu.RLock()
	defer k.seconds.mu.RUnlock()
	for _, f := range k.seconds.files {
		if f.dir == dir {
			continue
		}
		if err := k.s.fs.Remove(k.s.fs.PathJoin(f.dir, secondcopy.FileName)); err != nil && !vfs.IsNotExist(err) {
			k.s.report("remove earlier second copies", err)
		}
	}
}

// secondsDiffer reports whether a choice is worth another file.
func (k *keeper) secondsDiffer(want []secondcopy.Place, bytes int64) bool {
	k.seconds.mu.RLock()
	defer k.seconds.mu.RUnlock()
	if len(k.seconds.files) == 0 {
		return len(want) > 0
	}
	lacking, f := int64(0), k.seconds.files[0]
	for _, p := range want {
		if !f.Has(p) {
			lacking += int64(p.Len)
		}
	}
	return lacking > bytes/secondChange || len(want) == 0 && len(f.Places()) > 0
}

// counted is a frame and the most references that one of its chunks has.
type counted struct {
	secondcopy.Place
	refs uint64
}

// chooseSeconds returns the frames that shall have a copy, in the order of segments, and their bytes: those with the most references. It reads the rows of all chunks that have more than one.
func (k *keeper) chooseSeconds(ctx context.Context) (want []secondcopy.Place, bytes int64, err error) {
	found, err := k.manyReferences(ctx)
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(found, func(a, b counted) int {
		return cmp.Or(cmp.Compare(b.refs, a.refs), cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Off, b.Off))
	})
	most := max(secondLeast, int64(k.s.Stats().StoredBytes/secondPart))
	for _, c := range found {
		if bytes+int64(c.Len) > most || len(want) == secondcopy.MaxFrames {
			break
		}
		want = append(want, c.Place)
		bytes += int64(c.Len)
	}
	slices.SortFunc(want, comparePlaces)
	return want, bytes, nil
}

func comparePlaces(a, b secondcopy.Place) int {
	return cmp.Or(cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Off, b.Off))
}

// keepOnly adds to a choice the frames that have a copy, fall out of it, and are damaged in their segments: the copy may be all there is. What else falls out is read for that.
func (k *keeper) keepOnly(ctx context.Context, want []secondcopy.Place) ([]secondcopy.Place, error) {
	chosen := len(want)
	for _, p := range k.seconds.places() {
		if _, is := slices.BinarySearchFunc(want[:chosen], p, comparePlaces); is {
			continue
		}
		_, sound, there, err := k.frameOf(ctx, p)
		if err != nil {
			return nil, err
		}
		if there && !sound {
			want = append(want, p)
		}
	}
	if more := len(want) - secondcopy.MaxFrames; more > 0 { // of those with the most references some have to go
		want = slices.Delete(want, chosen-more, chosen)
	}
	slices.SortFunc(want, comparePlaces)
	return want, nil
}

// manyReferences returns the frames of sealed segments that hold a chunk with so many references.
func (k *keeper) manyReferences(ctx context.Context) (found []counted, err error) {
	s, frames, rows, seen := k.s, map[secondcopy.Place]uint64{}, rowIter{}, 0
	defer func() { err = errors.Join(err, rows.close()) }()
	it, err := s.db.NewIter(tableBounds(keyRef))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if seen++; seen%secondPiece == 0 {
			if err := k.pace.wait(ctx, secondPiece*refRowSize); err != nil {
				return nil, err
			}
		}
		id := block.ChunkID(binary.BigEndian.Uint64(it.Key()[1:]))
		n, err := extentmap.DecodeRef(id, it.Value())
		if err != nil {
			return nil, err
		}
		if n < secondRefs {
			continue
		}
		row, err := rows.row(s.db, id)
		if errors.Is(err, block.ErrNotFound) || err == nil && row.Flags&chunkDamaged != 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		seg, there := s.segments.get(row.Segment)
		if p := (secondcopy.Place{Segment: row.Segment, Generation: seg.Generation, Off: row.FrameOff, Len: row.FrameLen}); there && seg.State == segmentSealed {
			frames[p] = max(frames[p], n)
		}
	}
	for p, n := range frames {
		found = append(found, counted{p, n})
	}
	return found, it.Error()
}

// frameOf reads a frame from its segment, and reports whether it is sound, and whether the segment is still there. It asks for the repair of a segment in which it is not.
func (k *keeper) frameOf(ctx context.Context, p secondcopy.Place) (stored []byte, sound, there bool, err error) {
	if err := k.pace.wait(ctx, int(p.Len)); err != nil {
		return nil, false, false, err
	}
	row, there := k.s.segments.get(p.Segment)
	if !there || row.Generation != p.Generation {
		return nil, false, false, nil // it was given back
	}
	t := k.s.chunks.tools.Get().(*frameTools)
	defer k.s.chunks.tools.Put(t)
	stored = make([]byte, p.Len)
	if err = k.s.tiers.ReadAt(ctx, row.ID, row.Placement, stored, int64(p.Off)); err == nil {
		_, err = t.sound(stored, row.ID, p.Off)
	}
	if ctx.Err() != nil {
		return nil, false, true, ctx.Err()
	}
	if err != nil {
		k.found(row.ID)
	}
	return stored, err == nil, true, nil
}

// readSecond reads a frame that is to be copied and checks it, from the earlier copy if it is damaged. One that cannot be had is left out.
func (k *keeper) readSecond(ctx context.Context, p secondcopy.Place) ([]byte, bool, error) {
	stored, sound, there, err := k.frameOf(ctx, p)
	if err != nil || sound || !there {
		return stored, sound, err
	}
	t := k.s.chunks.tools.Get().(*frameTools)
	defer k.s.chunks.tools.Put(t)
	if k.seconds.read(stored, p) {
		_, err = t.sound(stored, p.Segment, p.Off)
		return stored, err == nil, nil
	}
	return nil, false, nil
}

// sound decodes a frame and checks the hashes of all its chunks.
func (t *frameTools) sound(stored []byte, id block.SegmentID, off uint32) (*frame, error) {
	f, err := t.decode(stored, id, off)
	for i := 0; err == nil && i < len(f.chunks); i++ {
		err = t.verify(f, i, id, off)
	}
	return f, err
}

// fromSecond answers the read of a frame that failed from its second copy.
func (k *keeper) fromSecond(row *segmentRow, off uint32, stored []byte, t *frameTools) (*frame, bool) {
	if !k.seconds.read(stored, secondcopy.Place{Segment: row.ID, Generation: row.Generation, Off: off, Len: uint32(len(stored))}) {
		return nil, false
	}
	f, err := t.sound(stored, row.ID, off)
	if err != nil {
		return nil, false
	}
	k.found(row.ID)
	k.counts.inline.Add(1)
	return f, true
}

// patch replaces a segment by a copy in which the frames that have a second copy are whole, and reports how many were not. A segment whose file is gone is left alone: its frames are read from their copies.
func (k *keeper) patch(ctx context.Context, row *segmentRow, g *guarded) (patched int, err error) {
	if _, gone := g.src.(noFile); gone {
		return 0, nil
	}
	t := k.s.chunks.tools.Get().(*frameTools)
	defer k.s.chunks.tools.Put(t)
	bad := map[uint32][]byte{}
	for _, p := range k.seconds.of(row) {
		if err := k.pace.wait(ctx, int(p.Len)); err != nil {
			return 0, err
		}
		b := make([]byte, p.Len)
		if n, _ := g.src.ReadAt(b, int64(p.Off)); n == len(b) {
			if _, err := t.sound(b, row.ID, p.Off); err == nil {
				continue
			}
		}
		if !k.seconds.read(b, p) {
			continue
		}
		if _, err := t.sound(b, row.ID, p.Off); err == nil {
			bad[p.Off] = b
		}
	}
	if len(bad) == 0 || !k.room(int64(row.Size)) {
		return 0, nil
	}
	return len(bad), k.rewrite(ctx, row, g, bad)
}

// errUnreadable says that a part of a segment cannot be read that no second copy has: another attempt may find it.
var errUnreadable = fmt.Errorf("a part that has no second copy cannot be read: %w", block.ErrCorrupt)

// rewrite replaces a segment by a copy with other bytes at some offsets.
func (k *keeper) rewrite(ctx context.Context, row *segmentRow, g *guarded, at map[uint32][]byte) error {
	file, err := k.s.tiers.ReplaceCopy(row.Placement[0])
	if err != nil {
		return err
	}
	defer file.Discard()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < int64(row.Size); off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), int64(row.Size)-off)]
		if err := k.pace.wait(ctx, 2*len(b)); err != nil {
			return err
		}
		if !readAround(g.src, b, off, at) {
			return errUnreadable
		}
		if _, err := file.WriteAt(b, off); err != nil {
			return err
		}
	}
	for off, b := range at {
		if _, err := file.WriteAt(b, int64(off)); err != nil {
			return err
		}
	}
	t := k.s.chunks.tools.Get().(*frameTools)
	defer k.s.chunks.tools.Put(t)
	for off, b := range at {
		if n, err := file.ReadAt(b, int64(off)); n < len(b) {
			return fmt.Errorf("read the mended segment back: %w", err)
		}
		if _, err := t.sound(b, row.ID, off); err != nil {
			return fmt.Errorf("read the mended segment back: %w", err)
		}
	}
	k.s.at(beforeMended)
	if err := file.Commit(); err != nil {
		return err
	}
	k.counts.written.Add(int64(row.Size))
	if _, there := k.s.segments.get(row.ID); !there {
		return k.s.unlink(row) // it was dropped meanwhile: the copy goes where the original went
	}
	return nil
}

// readAround reads a part of a segment, column by column where it cannot be read at once, and reports whether all is there but for what at has.
func readAround(r io.ReaderAt, b []byte, off int64, at map[uint32][]byte) bool {
	if n, _ := r.ReadAt(b, off); n == len(b) {
		return true
	}
	for i := 0; i < len(b); i += erasure.ColumnSize {
		c := b[i:min(len(b), i+erasure.ColumnSize)]
		if n, _ := r.ReadAt(c, off+int64(i)); n < len(c) && !covered(at, off+int64(i), int64(len(c))) {
			return false
		}
	}
	return true
}

// covered reports whether all of a range lies in one of the frames.
func covered(at map[uint32][]byte, off, n int64) bool {
	for start, b := range at {
		if off >= int64(start) && off+n <= int64(start)+int64(len(b)) {
			return true
		}
	}
	return false
}
