package history

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// Options are where history lies and whose it is.
type Options struct {
	FS      vfs.FS
	Dir     string // created with the first stream
	StoreID block.UUID
	Keys    *keyring.Ring // nil: the store is not encrypted
	Now     func() time.Time
	Damaged func() // somebody met damage of a sealed file (Set.Asked); may be nil, does not wait, and calls nothing of this package
}

// Set is the history of all volumes of a store.
type Set struct {
	opts Options

	mu struct {
		sync.Mutex
		streams map[block.VolumeID]*Stream
		files   map[uint32]*file
		nextID  uint32
		closed  bool
	}
	cache   frameCache
	handles *handles

	gather   int           // sectors; gatherSectors, but for tests
	joinSpan time.Duration // joinSpan, but for tests
}

// Open reads what history there is: the ends of sealed files, and the one of each volume that was being filled. A volume whose files cannot be used is in bad, with the reason, and has no stream: whoever opened
// decides whether its files go.
func Open(opts Options) (s *Set, bad map[block.VolumeID]error, err error) {
	s = &Set{opts: opts, handles: &handles{fs: opts.FS, damaged: opts.Damaged}, gather: gatherSectors, joinSpan: joinSpan}
	if s.opts.Now == nil {
		s.opts.Now = time.Now
	}
	s.mu.streams, s.mu.files, s.mu.nextID = map[block.VolumeID]*Stream{}, map[uint32]*file{}, 1
	bad = map[block.VolumeID]error{}
	names, err := opts.FS.List(opts.Dir)
	if vfs.IsNotExist(err) {
		return s, bad, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list history: %w", err)
	}
	for _, name := range names {
		volume, ok := parseDirName(name)
		if !ok {
			continue
		}
		if err := s.openStream(volume); err != nil {
			bad[volume] = err
		}
	}
	return s, bad, nil
}

func dirName(volume block.VolumeID) string { return fmt.Sprintf("%016x", uint64(volume)) }

func parseDirName(name string) (block.VolumeID, bool) {
	n, err := strconv.ParseUint(name, 16, 64)
	return block.VolumeID(n), err == nil && n > 0 && dirName(block.VolumeID(n)) == name
}

func (s *Set) dirOf(volume block.VolumeID) string {
	return s.opts.FS.PathJoin(s.opts.Dir, dirName(volume))
}

// openStream opens the files of a volume, oldest first.
func (s *Set) openStream(volume block.VolumeID) (err error) {
	names, err := s.opts.FS.List(s.dirOf(volume))
	if err != nil {
		return err
	}
	st := &Stream{s: s, volume: volume}
	defer func() {
		if err != nil {
			st.closeFiles()
		}
	}()
	slices.Sort(names)
	guarded := func(id uint32) bool {
		_, found := slices.BinarySearch(names, sidecarName(id))
		return found
	}
	for _, name := range names {
		id, ok := parseFileName(name)
		if !ok {
			id, ok = parseSidecarName(name)
		}
		if ok { // whether it can be used or not
			s.mu.nextID = max(s.mu.nextID, id+1)
		}
	}
	for _, name := range names {
		path := s.opts.FS.PathJoin(s.dirOf(volume), name)
		id, ok := parseFileName(name)
		if n := len(st.files); !ok && isLeftOver(name) || ok && n > 0 && id <= st.files[n-1].header.Through {
			if ok && guarded(id) {
				if err := s.opts.FS.Remove(beside(path, sidecarSuffix)); err != nil {
					return err
				}
			}
			if err := s.opts.FS.Remove(path); err != nil { // of a file that was not whole when a death came, or one that another stands for
				return err
			}
			continue
		}
		if !ok {
			continue
		}
		if !guarded(id) { // what has a sidecar was sealed
			if empty, err := s.neverBegun(path); err != nil {
				return err
			} else if empty {
				continue
			}
		}
		f, err := openFile(s.handles, path, s.opts.StoreID, volume, id, s.opts.Keys)
		if err != nil {
			return err
		}
		st.files = append(st.files, f)
		s.mu.nextID = max(s.mu.nextID, f.header.Through+1) // a new file must not be one that this one stands for
		// Below it may be: what of a write was there after all that had failed before a gap.
		if n := len(st.files); n > 1 && f.header.After > st.files[n-2].lastSeq {
			return f.name(damaged(fmt.Sprintf("the file that has the records from %d to %d", st.files[n-2].lastSeq, f.header.After), 80))
		}
	}
	if err := st.findSidecars(names); err != nil {
		return err
	}
	s.mu.streams[volume] = st
	for _, f := range st.files {
		s.mu.files[f.header.ID] = f
	}
	return nil
}

// neverBegun removes a file whose header did not become durable: a sync of what lies behind would have made it so, so nothing of the file was ever promised.
func (s *Set) neverBegun(path string) (bool, error) {
	f, err := s.opts.FS.Open(path)
	if err != nil {
		return false, err
	}
	page := make([]byte, headerSize)
	err = vfs.ReadFull(f, page, 0)
	short := errors.Is(err, io.ErrUnexpectedEOF)
	if short {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil || !short && !zeroes(page) {
		return false, err
	}
	return true, s.opts.FS.Remove(path)
}

// Stream returns the history of a volume, or nil.
func (s *Set) Stream(volume block.VolumeID) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.streams[volume]
}

// Volumes lists the volumes that have history.
func (s *Set) Volumes() (all []block.VolumeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.mu.streams {
		all = append(all, id)
	}
	return all
}

// Create begins the history of a volume that has none, durably. What an earlier one could not remove goes.
func (s *Set) Create(volume block.VolumeID) (*Stream, error) {
	if st := s.Stream(volume); st != nil {
		return st, nil
	}
	if err := s.removeFiles(volume); err != nil {
		return nil, fmt.Errorf("begin history: %w", err)
	}
	for _, dir := range []string{s.opts.Dir, s.dirOf(volume)} {
		if err := s.opts.FS.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("begin history: %w", err)
		}
		if err := vfs.SyncDir(s.opts.FS, s.opts.FS.PathDir(dir)); err != nil {
			return nil, fmt.Errorf("begin history: %w", err)
		}
	}
	st := &Stream{s: s, volume: volume}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.streams[volume] = st
	return st, nil
}

// Remove gives up all history of a volume, also such that could not be opened. It fails with block.ErrInUse while somebody reads it.
func (s *Set) Remove(volume block.VolumeID) error {
	if st := s.Stream(volume); st != nil {
		if err := st.remove(); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.mu.streams, volume)
		s.mu.Unlock()
	}
	err := s.removeFiles(volume)
	if err == nil {
		err = s.opts.FS.Remove(s.dirOf(volume))
	}
	if vfs.IsNotExist(err) {
		return nil
	}
	return err
}

// removeFiles removes the files of a volume that has no stream.
func (s *Set) removeFiles(volume block.VolumeID) error {
	names, err := s.opts.FS.List(s.dirOf(volume))
	if vfs.IsNotExist(err) {
		return nil
	}
	for _, name := range names {
		_, file := parseFileName(name)
		_, sidecar := parseSidecarName(name)
		if file || sidecar || isLeftOver(name) {
			err = errors.Join(err, s.opts.FS.Remove(s.opts.FS.PathJoin(s.dirOf(volume), name)))
		}
	}
	return err
}

// Bytes is what all history takes on disk.
func (s *Set) Bytes() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.mu.files {
		f.mu.Lock()
		n += f.end
		f.mu.Unlock()
	}
	return n
}

// Close seals what is being filled and closes all files.
func (s *Set) Close() (err error) {
	s.mu.Lock()
	s.mu.closed = true
	streams := make([]*Stream, 0, len(s.mu.streams))
	for _, st := range s.mu.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	for _, st := range streams {
		defer st.stopThinning()()
		err = errors.Join(err, st.Roll(), st.sealSpent())
		st.closeFiles()
	}
	s.handles.pack.close()
	return err
}

// ReadAt fills p, whole sectors that lie one after the other at pos, and checks them against sums. A mismatch is a *block.CorruptError; a file that is gone an error that wraps block.ErrNotFound.
func (s *Set) ReadAt(p []byte, pos uint64, sums []uint32) error {
	s.mu.Lock()
	f := s.mu.files[fileOf(pos)]
	s.mu.Unlock()
	if f == nil {
		return fmt.Errorf("read history file %08x: %w", fileOf(pos), block.ErrNotFound)
	}
	l, err := f.layout()
	if err != nil {
		return err
	}
	var r frameRef
	var b []byte // its payload
	for raw := rawOf(pos); len(p) > 0; {
		next, off, ok := l.find(raw)
		if !ok {
			return f.name(damaged("a frame at that position", int64(raw)))
		}
		if b == nil || next.off != r.off {
			r = next
			if b, err = s.cache.get(f, &r); err != nil {
				return f.name(err)
			}
		}
		n := copy(p[:l.run(len(p))], b[off:])
		for at := 0; at < n; at += sectorSize {
			if got := crc32.Checksum(p[at:at+sectorSize], castagnoli); got != sums[at/sectorSize] {
				return &block.CorruptError{Source: f.source(), Offset: r.off, Want: fmt.Sprintf("crc32c %08x", sums[at/sectorSize]), Got: fmt.Sprintf("%08x", got)}
			}
		}
		p, sums, raw = p[n:], sums[n/sectorSize:], raw+uint32(n)
	}
	return nil
}

// newFile makes the next file of a volume. It is durable when the first Sync of its stream returns.
func (s *Set) newFile(volume block.VolumeID, after uint64) (*file, error) {
	s.mu.Lock()
	id := s.mu.nextID
	s.mu.nextID++
	s.mu.Unlock()
	if id > maxFileID {
		return nil, fmt.Errorf("history has no ids of files left: %w", block.ErrNoSpace)
	}
	f := &file{path: s.opts.FS.PathJoin(s.dirOf(volume), fileName(id)), unsynced: true, handles: s.handles}
	f.header = Header{StoreID: s.opts.StoreID, Volume: volume, ID: id, After: after, Created: max(0, s.opts.Now().UnixNano())}
	if s.opts.Keys != nil {
		f.header.KeyID = s.opts.Keys.Current()
	}
	if _, err := rand.Read(f.header.Salt[:]); err != nil {
		return nil, err
	}
	page, seed := f.header.encode()
	f.seed, f.chain, f.end, f.lastSeq = seed, seed, headerSize, after
	var err error
	if f.vault, err = openVault(s.opts.Keys, &f.header, page); err != nil {
		return nil, err
	}
	h, err := vfs.Create(s.opts.FS, f.path)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", f.source(), err)
	}
	s.handles.begin(f, h)
	err = vfs.WriteVec(f.f, [][]byte{page}, 0)
	if err == nil {
		err = vfs.SyncDir(s.opts.FS, s.dirOf(volume))
	}
	if err != nil {
		return nil, errors.Join(f.name(err), s.handles.drop(f), s.opts.FS.Remove(f.path))
	}
	s.mu.Lock()
	s.mu.files[id] = f
	s.mu.Unlock()
	return f, nil
}

// drop removes a file for good. Nobody reads it.
func (s *Set) drop(f *file) error {
	s.mu.Lock()
	delete(s.mu.files, f.header.ID)
	s.mu.Unlock()
	s.cache.forget(f)
	f.discard()
	return errors.Join(s.handles.drop(f), f.removeSidecar(), s.opts.FS.Remove(f.path))
}

// checkLabel refuses what a label cannot be.
func checkLabel(label string) error {
	if len(label) > MaxLabel || strings.ContainsFunc(label, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("label of %d bytes: want at most %d without control characters: %w", len(label), MaxLabel, block.ErrInvalid)
	}
	return nil
}
