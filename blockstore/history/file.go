package history

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/s2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// Codecs of a payload. The values are part of the format.
const (
	codecNone uint8 = 0
	codecS2   uint8 = 1
	codecZstd uint8 = 2 // of a file that was thinned
)

const fileSuffix = ".hist"

// file is one file of a volume's history.
type file struct {
	f      vfs.File // of the one appender, while there may be one; readers use read
	path   string
	header Header
	seed   uint32
	vault  *vault

	handles *handles
	opened  opened // guarded by handles.mu

	mu struct {
		sync.Mutex
		frames []frameRef // nil in a sealed file until payload is read, and again when nobody holds the file
		order  []uint32   // likewise; of a file of version 3
		loaded bool
		pins   int
		hides  bool     // there is a batch: readers see what is written, which shown says
		shown  progress // likewise
	}

	// Of the one appender; fixed once the file is sealed, but readers take them under mu.
	sealed   bool
	end      int64 // bytes
	raw      uint32
	chain    uint32
	count    uint32 // frames
	lastSeq  uint64 // of the last whole record here or before
	lastTime int64
	metas    []byte   // of all frames, for the index; nil once it is sealed
	sheets   []sheet  // of version 3, likewise
	order    []uint32 // likewise
	spent    bool     // a write failed: nothing more is put where it may have left something
	unsynced bool
	burst    int    // frames since the last sync
	batch    *batch // of the file, while it grows fast

	written  uint32 // of a sealed file: what its records wrote, bytes
	indexLen int64  // likewise; as it is stored

	stuck     bool   // it could not be thinned, as it is damaged; of who thins
	apart     bool   // it could not be joined with others; likewise
	firstSeq  uint64 // of the first record, if it was looked at; likewise
	firstTime int64

	sealSum uint32 // checksum of the footer, once it is sealed; guarded by mu
	guard   guard
}

func (f *file) source() string { return "history file " + f.path }

// name puts the file into an error of this package.
func (f *file) name(err error) error {
	var c *block.CorruptError
	if errors.As(err, &c) && c.Source == "" {
		return fmt.Errorf("%w", &block.CorruptError{Source: f.source(), Offset: c.Offset, Want: c.Want, Got: c.Got})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.source(), err)
	}
	return nil
}

func fileName(id uint32) string { return fmt.Sprintf("%08x%s", id, fileSuffix) }

func parseFileName(name string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, fileSuffix)
	n, err := strconv.ParseUint(digits, 16, 32)
	return uint32(n), ok && err == nil && n > 0 && n <= maxFileID && fileName(uint32(n)) == name
}

// openFile reads head and end of a file. A file without a footer is read as a whole and then sealed, so that nothing is ever appended to what an earlier run wrote.
func openFile(handles *handles, path string, store block.UUID, volume block.VolumeID, id uint32, keys *keyring.Ring) (_ *file, err error) {
	f := &file{path: path, handles: handles}
	h, err := vfs.OpenUpdate(handles.fs, path)
	if err != nil {
		return nil, err
	}
	handles.begin(f, h)
	defer func() {
		if err != nil {
			_ = handles.drop(f)
		}
	}()
	info, err := f.f.Stat()
	if err != nil {
		return nil, err
	}
	size := info.Size()
	if err := f.readHeader(keys); err != nil {
		if !mendable(err) || !f.openThrough(store, id, size, false) || f.readHeader(keys) != nil {
			return nil, f.name(err)
		}
		size = f.guard.through.Load().of.size
	}
	if f.header.StoreID != store || f.header.Volume != volume || f.header.ID != id {
		return nil, f.name(damaged("a file of this store and volume, of the id in its name", 16))
	}
	found, err := f.readFooter(size)
	if !found && (err == nil || mendable(err)) && (f.guard.through.Load() != nil || f.openThrough(store, id, size, true)) {
		found, err = f.readFooter(f.guard.through.Load().of.size)
	}
	if err != nil {
		return nil, f.name(err)
	}
	if found {
		handles.end(f)
		return f, nil
	}
	f.guard.through.Store(nil)
	if f.header.Level != Whole { // it got its name when it was whole
		return nil, f.name(damaged("a footer, as of every file that was thinned", info.Size()-footerSize))
	}
	if err := f.scan(info.Size(), true); err != nil {
		return nil, f.name(err)
	}
	f.end = max(f.end, info.Size()) // what lies behind the last whole frame stays where it is: the index goes behind it
	if f.seal() == nil {
		return f, nil
	}
	// As on a full disk. It is read frame by frame, and sealed by another open; what it has must be as durable as if it had been.
	f.spent = true
	if err := vfs.DataSync(f.f); err != nil {
		return nil, f.name(fmt.Errorf("sync: %w", err))
	}
	return f, nil
}

func (f *file) readHeader(keys *keyring.Ring) error {
	page := make([]byte, headerSize)
	if err := f.readVia(f.f, page, 0); err != nil {
		return damaged("a header", 0)
	}
	var err error
	if f.header, f.seed, err = ParseHeader(page); err != nil {
		return err
	}
	f.vault, err = openVault(keys, &f.header, page)
	f.chain, f.end, f.lastSeq = f.seed, headerSize, f.header.After
	return err
}

// readFooter takes over what the footer of a sealed file says.
func (f *file) readFooter(size int64) (bool, error) {
	if size < headerSize+footerSize {
		return false, nil
	}
	b := make([]byte, footerSize)
	if err := f.readVia(f.f, b, size-footerSize); err != nil {
		return false, err
	}
	ft, err := parseFooter(b, &f.header, f.seed, size)
	if errors.Is(err, block.ErrCorrupt) {
		return false, nil // where it was cut off, or damaged: the frames tell
	}
	if err != nil {
		return false, err
	}
	f.written, f.indexLen = ft.written(&f.header), ft.IndexLen
	f.sealSum = le.Uint32(b[footerSize-4:])
	f.sealed, f.end, f.raw, f.chain, f.count, f.lastSeq, f.lastTime = true, size, ft.Raw, ft.Chain, ft.Frames, ft.LastSeq, ft.LastTime
	return true, nil
}

// scan reads the frames one after the other up to the first that is not whole, with their payload if deep.
func (f *file) scan(size int64, deep bool) error {
	head := make([]byte, frameSize)
	f.mu.loaded = true
	for f.end+frameSize <= size && f.end < 1<<32-1 {
		if err := vfs.ReadFull(f.f, head, f.end); err != nil {
			return err
		}
		h, err := parseFrame(head, f.count, f.chain)
		if err != nil || f.end+frameSize+int64(h.MetaStored)+int64(h.PayloadStored) > size || uint64(f.raw)+uint64(h.PayloadRaw) > MaxFileRaw {
			return nil
		}
		ref := frameRef{off: f.end, raw: f.raw, rawLen: h.PayloadRaw, stored: h.PayloadStored, metaRaw: h.MetaRaw, metaLen: h.MetaStored, sum: h.PayloadSum, codec: h.Codec}
		meta, err := f.readMeta(&ref, h.MetaSum)
		if errors.Is(err, block.ErrCorrupt) && !errors.Is(err, errForged) {
			return nil
		}
		if err != nil {
			return err
		}
		if deep {
			if _, err := f.readPayload(&ref); errors.Is(err, block.ErrCorrupt) && !errors.Is(err, errForged) {
				return nil
			} else if err != nil {
				return err
			}
		}
		f.took(&ref, &h, meta)
	}
	return nil
}

// put appends a frame: what records did, if it says so, and payload, which is compressed as h says. It fills in what h lacks.
func (f *file) put(h *frameHeader, meta, body []byte) error {
	h.Ordinal, h.MetaRaw = f.count, uint32(len(meta))
	sealed := f.vault.seal(nonce(nonceMeta, f.end), meta)
	body = f.vault.seal(nonce(noncePayload, f.end), body)
	h.MetaStored, h.MetaSum = uint32(len(sealed)), crc32.Checksum(sealed, castagnoli)
	h.PayloadStored, h.PayloadSum = uint32(len(body)), crc32.Checksum(body, castagnoli)
	var head [frameSize]byte
	h.encode(head[:], f.chain)
	if err := f.write([][]byte{head[:], sealed, body}); err != nil {
		return f.fail("append", err)
	}
	f.unsynced = true
	f.took(&frameRef{off: f.end, raw: f.raw, rawLen: h.PayloadRaw, stored: h.PayloadStored, metaRaw: h.MetaRaw, metaLen: h.MetaStored, sum: h.PayloadSum, codec: h.Codec}, h, meta)
	return f.gathered()
}

// fail ends a file to which a write has failed: what is there is what readers can see.
func (f *file) fail(what string, err error) error {
	f.spent = true
	f.discard()
	return f.name(fmt.Errorf("%s: %w", what, err))
}

// took accounts for a frame that is at the end of the file.
func (f *file) took(ref *frameRef, h *frameHeader, meta []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.frames = append(f.mu.frames, *ref)
	f.metas = append(f.metas, meta...)
	f.end += frameSize + int64(h.MetaStored) + int64(h.PayloadStored)
	f.raw += h.PayloadRaw
	f.chain, f.lastSeq, f.lastTime = h.Chain, h.LastSeq, h.LastTime
	f.count++
}

// readMeta reads what the records of a frame did.
func (f *file) readMeta(r *frameRef, sum uint32) ([]byte, error) {
	b := make([]byte, r.metaLen)
	if err := f.read(b, r.off+frameSize); err != nil {
		return nil, err
	}
	if crc32.Checksum(b, castagnoli) != sum {
		return nil, damaged("records that match their checksum", r.off)
	}
	b, err := f.vault.open(nonce(nonceMeta, r.off), r.off, b)
	if err == nil && len(b) != int(r.metaRaw) {
		err = damaged("records of the length promised", r.off)
	}
	return b, err
}

// readPayload reads and decompresses the payload of a frame.
func (f *file) readPayload(r *frameRef) ([]byte, error) {
	if r.rawLen == 0 {
		return nil, nil
	}
	b := make([]byte, r.stored)
	if err := f.read(b, r.payloadAt()); err != nil {
		return nil, err
	}
	if crc32.Checksum(b, castagnoli) != r.sum {
		return nil, damaged("payload that matches its checksum", r.payloadAt())
	}
	b, err := f.vault.open(nonce(noncePayload, r.off), r.off, b)
	if err != nil {
		return nil, err
	}
	if r.codec == codecZstd {
		if b, err = f.handles.pack.unpack(b, int(r.rawLen)); err != nil {
			return nil, damaged("payload that decompresses", r.payloadAt())
		}
	}
	if r.codec == codecS2 {
		n, err := s2.DecodedLen(b)
		if err != nil || n != int(r.rawLen) {
			return nil, damaged("payload of the length promised", r.payloadAt())
		}
		if b, err = s2.Decode(nil, b); err != nil {
			return nil, damaged("payload that decompresses", r.payloadAt())
		}
	}
	if len(b) != int(r.rawLen) {
		return nil, damaged("payload of the length promised", r.payloadAt())
	}
	return b, nil
}

// seal writes index and footer behind the frames and makes them durable.
func (f *file) seal() error {
	if f.sealed {
		return nil
	}
	if err := f.flush(); err != nil {
		return err
	}
	f.mu.Lock()
	index := encodeIndex(f.mu.frames, f.sheets, f.order, f.metas)
	f.mu.Unlock()
	var random [12]byte
	if f.vault != nil {
		if _, err := rand.Read(random[:]); err != nil {
			return err
		}
	}
	stored := f.vault.seal(random[:], index)
	ft := footer{Nonce: random, ID: f.header.ID, Frames: f.count, LastSeq: f.lastSeq, LastTime: f.lastTime, IndexOff: f.end, IndexLen: int64(len(stored)), IndexSum: crc32.Checksum(stored, castagnoli), Chain: f.chain, Raw: f.raw, Sheets: uint32(len(f.sheets)), Sectors: uint32(len(f.order))}
	foot := ft.encode(f.seed, f.header.version())
	err := vfs.WriteVec(f.f, [][]byte{stored, foot}, f.end)
	if err == nil {
		err = vfs.DataSync(f.f)
	}
	if err != nil {
		return f.fail("seal", err)
	}
	f.mu.Lock()
	f.written, f.indexLen = ft.written(&f.header), ft.IndexLen
	f.end += int64(len(stored)) + footerSize
	f.sealed, f.sealSum, f.metas, f.sheets, f.order, f.unsynced = true, le.Uint32(foot[footerSize-4:]), nil, nil, nil, false
	f.mu.frames, f.mu.loaded = nil, false
	f.mu.Unlock()
	f.handles.end(f)
	return nil
}

// indexSize is how long the index of what is in the file would be, in bytes.
func (f *file) indexSize() int {
	return int(f.count)*tableEntry + len(f.sheets)*sheetEntry + len(f.order)*orderEntry + len(f.metas)
}

// unpin lets a reader go. The last one takes with it what was kept for readers.
func (f *file) unpin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.pins--; f.mu.pins == 0 && f.sealed {
		f.mu.frames, f.mu.order, f.mu.loaded = nil, nil, false
	}
}
