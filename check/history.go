package check

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/history.md
const (
	historyName    = "history"
	historySuffix  = ".hist"
	historyHead    = 512
	historyFrame   = 64
	historyFoot    = 128
	historyTable   = 32
	historySheet   = 8
	historyOrder   = 4
	historyState   = 64
	historyRow     = 64
	historyMostRaw = 128 << 10
	// superHistory is the ro-compat feature: volumes may have history.
	superHistory = 1 << 0
)

// HistoryDump is a file of a volume's history.
type HistoryDump struct {
	File   string `json:"file"`
	Size   int64  `json:"size"`
	Store  string `json:"store,omitempty"`
	Volume uint64 `json:"volume"`
	ID     uint32 `json:"id"`
	KeyID  uint32 `json:"keyId"` // 0: it is not encrypted
	After  uint64 `json:"after"` // its records have higher numbers
	Sealed bool   `json:"sealed"`

	// Of a file that was thinned.

	Level      uint32 `json:"level,omitempty"`   // 1: flushes, 2: minutes, 3: hours; 0: every record is there
	Through    uint32 `json:"through,omitempty"` // it stands for the files up to that id
	FirstPoint uint64 `json:"firstPoint,omitempty"`
	LastPoint  uint64 `json:"lastPoint,omitempty"`

	// Of version 3.

	Placed       bool         `json:"placed,omitempty"`       // payload lies by blocks; RawBytes is what of it is there once
	WrittenBytes uint64       `json:"writtenBytes,omitempty"` // by the records
	Sheets       []HistoryDid `json:"sheets,omitempty"`       // rows of records, if they could be read

	LastSeq   uint64             `json:"lastSeq"`
	RawBytes  uint64             `json:"rawBytes"`
	Opened    bool               `json:"opened"` // what the records did could be read: nothing is sealed, or a key opened it
	Frames    []HistoryFrameDump `json:"frames"`
	Points    []HistoryPoint     `json:"points,omitempty"`    // snapshots, marks, resizes and rollbacks
	TornBytes int64              `json:"tornBytes,omitempty"` // behind the last whole frame of a file that is not sealed
	Error     string             `json:"error,omitempty"`     // what is wrong; frames before it are listed

	version     uint32
	newest      uint64   // of the numbers of records
	sectors     []uint32 // of a file of version 3 that could be read the CRC32C of each sector of the payload
	table, meta []byte   // what an index has to hold
	chain       uint32

	zstd   *zstd.Decoder // made when it is needed
	keys   *ring         // of an encrypted store, if somebody has them
	aead   cipher.AEAD   // of this file, then
	forged error         // a tag, or a record, that does not fit under checksums that do: not how a file is torn
}

// HistoryFrameDump is one frame.
type HistoryFrameDump struct {
	Offset  int64  `json:"offset"`
	Records uint32 `json:"records"`
	Raw     uint32 `json:"rawBytes"`
	Stored  uint32 `json:"storedBytes"`
	Codec   string `json:"codec"`
	LastSeq uint64 `json:"lastSeq"`

	Did *HistoryDid `json:"did,omitempty"` // if it could be read
}

// DumpHistory reads a file of history and verifies its checksums. It needs no store and no key: what an encrypted file holds is checked as it is stored. With unwrap it is opened, too, with the keys of the store in dir, or,
// if that is "", of the one that the file lies in. The error is ErrWrongKey, block.ErrInvalid for a key that is not needed or of another store, or what keeps a file from being read; what is wrong with the history is in the dump.
func DumpHistory(path, dir string, unwrap Unwrap) (*HistoryDump, error) {
	if dir == "" && unwrap != nil {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("dump history: %w", err)
		}
		dir = filepath.Join(filepath.Dir(abs), "..", "..") // DIR/history/VOLUME/FILE
	}
	keys, err := ringOf(dir, unwrap)
	if err != nil {
		return nil, fmt.Errorf("dump history: keys of the store in %s: %w", dir, err)
	}
	d, err := dumpHistory(path, keys)
	if err == nil && keys != nil && d.Store != "" && d.Store != fmt.Sprintf("%x", keys.store[:]) {
		return nil, fmt.Errorf("dump history: %s is of store %s, and the keys in %s are of %x: name its data directory: %w", path, d.Store, dir, keys.store[:], block.ErrInvalid)
	}
	return d, err
}

// dumpHistory also opens what is sealed, if there are keys.
func dumpHistory(path string, keys *ring) (*HistoryDump, error) {
	b, err := os.ReadFile(path) // a file has at most some 100 MiB
	if err != nil {
		return nil, fmt.Errorf("dump history: %w", err)
	}
	d := &HistoryDump{File: path, Size: int64(len(b)), Frames: []HistoryFrameDump{}, keys: keys}
	if err := d.read(b); err != nil {
		d.Error = err.Error()
	}
	if d.zstd != nil {
		d.zstd.Close()
	}
	return d, nil
}

func (d *HistoryDump) read(b []byte) error {
	if len(b) < historyHead {
		return nil // never begun
	}
	if allZero(b[:historyHead]) {
		return nil // never begun: its header did not become durable
	}
	f := &fields{b: b[:historyHead]}
	f.magic("HNXHIST\n")
	d.version = f.u32()
	f.rule(d.version >= 1 && d.version <= 3, 8, "version 1, 2 or 3", "%d", d.version)
	d.Placed = d.version == 3
	size := f.u32()
	store := f.take(16)
	d.Store = fmt.Sprintf("%x", store)
	d.Volume, d.ID, d.KeyID = f.u64(), f.u32(), f.u32()
	f.take(32)
	d.After = f.u64()
	f.take(8)
	bound := historyBound
	if d.version >= 2 {
		bound = historyThinnedBound
		d.Level, d.Through, d.FirstPoint, d.LastPoint = f.u32(), f.u32(), f.u64(), f.u64()
		f.rule(d.Level >= 1 && d.Level <= 3 && d.Through >= d.ID && d.FirstPoint <= d.LastPoint && (d.FirstPoint == 0) == (d.LastPoint == 0), 96, "a level, an id and points in bounds", "level %d, through %d, points %d to %d", d.Level, d.Through, d.FirstPoint, d.LastPoint)
		f.reserved(historyHead - 4 - 120)
	} else {
		f.reserved(historyHead - 4 - 96)
	}
	seed := f.u32()
	f.rule(size == historyHead && d.ID > 0 && d.ID < 1<<31 && d.Volume > 0, 12, "a header in bounds", "size %d, id %d, volume %d", size, d.ID, d.Volume)
	if f.err == nil {
		f.err = checkSum(historyHead-4, crc(b[:historyHead-4]), seed)
	}
	if f.err != nil {
		return f.err
	}
	f.rule(d.keys == nil || d.KeyID != 0, 44, "a file that is encrypted, as the store is", "one that is not")
	if f.err != nil {
		return f.err
	}
	d.Opened = d.KeyID == 0 || d.keys != nil
	if d.KeyID != 0 && d.keys != nil {
		var err error
		if d.aead, err = d.keys.historyKey(d.KeyID, b[:bound]); err != nil {
			return err
		}
	}
	d.LastSeq, d.chain = d.After, seed
	foot := d.footer(b, seed)
	if foot == nil && d.Level > 0 {
		return faultf(int64(len(b)-historyFoot), "a footer, as of every file that was thinned", "none that holds")
	}
	if foot == nil {
		at, _ := d.frames(b, 1<<32)
		d.TornBytes = int64(len(b)) - at // where it was cut off
		return d.forged
	}
	// Between the last frame and the index may lie what a death left.
	at, err := d.frames(b[:binary.LittleEndian.Uint64(foot[40:])], int(binary.LittleEndian.Uint32(foot[16:])))
	if err != nil {
		return err
	}
	return d.sealed(b, foot, at)
}

// footer returns the footer if there is one that holds.
func (d *HistoryDump) footer(b []byte, seed uint32) []byte {
	if len(b) < historyHead+historyFoot {
		return nil
	}
	foot := b[len(b)-historyFoot:]
	le := binary.LittleEndian
	if string(foot[:8]) != "HNXHISE\n" || crcMore(seed, foot[:historyFoot-4]) != le.Uint32(foot[historyFoot-4:]) {
		return nil
	}
	off, n := le.Uint64(foot[40:]), le.Uint64(foot[48:])
	if total := uint64(len(b) - historyFoot); off < historyHead || off > total || n != total-off {
		return nil
	}
	d.Sealed = true
	return foot
}

// frames walks at most so many frames and returns where the last whole one ends.
func (d *HistoryDump) frames(b []byte, most int) (int64, error) {
	at := int64(historyHead)
	for int64(len(b))-at >= historyFrame && len(d.Frames) < most {
		n, err := d.frame(b[at:], at)
		if err != nil {
			return at, err
		}
		at += n
	}
	return at, nil
}

// frame verifies one frame, and notes what the index has to say of it.
func (d *HistoryDump) frame(b []byte, at int64) (int64, error) {
	f := &fields{b: b[:historyFrame]}
	f.magic("HNHF")
	ordinal, codec := f.u32(), f.u8()
	f.reserved(3)
	records, metaRaw, meta, raw, stored := f.u32(), f.u32(), f.u32(), f.u32(), f.u32()
	last, when := f.u64(), f.u64()
	metaSum, sum := f.u32(), f.u32()
	f.reserved(4)
	chain := f.u32()
	if f.err == nil {
		f.err = checkSum(60, crcMore(d.chain, b[:60]), chain)
	}
	f.rule(int(ordinal) == len(d.Frames), 4, fmt.Sprintf("frame %d", len(d.Frames)), "%d", ordinal)
	f.rule(codec <= 1 && d.Level == 0 || (codec == 0 || codec == 2) && d.Level > 0, 8, "a codec of that version", "%d", codec)
	f.rule(raw <= historyMostRaw && raw%4096 == 0 && metaRaw <= meta, 8, "a frame in bounds", "codec %d, %d B of payload", codec, raw)
	if d.Placed {
		f.rule(records|metaRaw|meta == 0 && last|when == 0 && raw > 0, 12, "a frame without records", "%d records, %d B of payload", records, raw)
		last = d.LastSeq
	}
	f.rule(last >= d.LastSeq, 32, fmt.Sprintf("a record from %d on", d.LastSeq), "%d", last)
	n := historyFrame + int64(meta) + int64(stored)
	f.rule(n <= int64(len(b)), 20, "lengths inside the file", "%d and %d", meta, stored)
	if f.err == nil {
		f.err = checkSum(48, crc(b[historyFrame:historyFrame+meta]), metaSum)
	}
	if f.err == nil {
		f.err = checkSum(52, crc(b[historyFrame+meta:n]), sum)
	}
	if f.err != nil {
		bad := asFault(f.err)
		return 0, &fault{off: at + bad.off, want: bad.want, got: bad.got}
	}
	row := make([]byte, historyTable)
	for i, v := range []uint32{uint32(at), uint32(d.RawBytes), raw, stored, metaRaw, meta, sum, uint32(codec)} {
		binary.LittleEndian.PutUint32(row[4*i:], v)
	}
	d.table = append(d.table, row...)
	begin := len(d.meta)
	if err := d.open(b[historyFrame:n], at, meta, raw, codec); err != nil {
		d.forged = err
		return 0, err
	}
	this := HistoryFrameDump{Offset: at, Records: records, Raw: raw, Stored: stored, Codec: []string{"none", "s2", "zstd"}[codec], LastSeq: last}
	if d.Opened && !d.Placed {
		did, _, wrong := d.records(d.meta[begin:], raw)
		if wrong == "" && did.Records != records {
			wrong = fmt.Sprintf("%d records", did.Records)
		}
		if wrong != "" {
			d.forged = faultf(at+historyFrame, fmt.Sprintf("meta of %d records with %d B of payload", records, raw), "%s", wrong)
			return 0, d.forged
		}
		this.Did = &did
	}
	d.Frames = append(d.Frames, this)
	d.RawBytes, d.LastSeq, d.chain = d.RawBytes+uint64(raw), last, chain
	return n, nil
}

// open reads what a frame at a place has behind its head, as far as it can be opened.
func (d *HistoryDump) open(b []byte, at int64, meta, raw uint32, codec uint8) error {
	did, payload := b[:meta], b[meta:]
	switch {
	case d.KeyID != 0 && d.aead == nil:
		return nil
	case d.aead != nil:
		var err error
		if len(did) > 0 {
			if did, err = d.aead.Open(nil, logNonce(nonceMeta, at), did, nil); err != nil {
				return faultf(at+historyFrame, "the authentication tag of this meta at this place", "another")
			}
		}
		if len(payload) > 0 {
			if payload, err = d.aead.Open(nil, logNonce(noncePayload, at), payload, nil); err != nil {
				return faultf(at+historyFrame+int64(meta), "the authentication tag of this payload at this place", "another")
			}
		}
	}
	d.meta = append(d.meta, did...)
	if !d.Placed {
		return nil
	}
	if wrong := d.sumSectors(payload, raw, codec); wrong != "" {
		return faultf(at+historyFrame+int64(meta), fmt.Sprintf("%d B of payload", raw), "%s", wrong)
	}
	return nil
}

// sealed compares footer and index with the frames before them.
func (d *HistoryDump) sealed(b, foot []byte, end int64) error {
	le := binary.LittleEndian
	off, n := int64(le.Uint64(foot[40:])), int64(le.Uint64(foot[48:]))
	index := b[off : off+n]
	at := int64(len(b)) - historyFoot
	switch {
	case le.Uint32(foot[8:]) != d.version:
		return faultf(at+8, fmt.Sprintf("version %d", d.version), "%d", le.Uint32(foot[8:]))
	case le.Uint32(foot[12:]) != d.ID || int(le.Uint32(foot[16:])) != len(d.Frames) || uint64(le.Uint32(foot[20:])) != d.RawBytes || le.Uint64(foot[24:]) != d.LastSeq && (d.Level == 0 || le.Uint64(foot[24:]) < d.LastSeq) || le.Uint32(foot[60:]) != d.chain:
		return faultf(at+12, "a footer of the frames before it", "another")
	case !allZero(foot[d.footUsed():historyFoot-4]) || d.KeyID == 0 && !allZero(foot[64:76]):
		return faultf(at+64, "zeroes in reserved bytes", "others")
	case crc(index) != le.Uint32(foot[56:]):
		return faultf(at+56, fmt.Sprintf("crc %08x", crc(index)), "%08x", le.Uint32(foot[56:]))
	case end > off:
		return faultf(off, "an index behind the frames", "one before %d", end)
	}
	d.LastSeq = le.Uint64(foot[24:]) // records behind the last one that is left may have gone
	switch {
	case d.KeyID != 0 && d.aead == nil:
		return nil
	case d.aead != nil:
		var err error
		if index, err = d.aead.Open(nil, foot[64:76], index, nil); err != nil {
			return faultf(off, "the authentication tag of the index", "another")
		}
	}
	if d.Placed {
		return d.placed(index, off, le.Uint32(foot[76:]), le.Uint32(foot[80:]))
	}
	if string(index) != string(d.table)+string(d.meta) {
		return faultf(off, "an index of the frames before it", "another")
	}
	return nil
}

// WriteText writes a line for the file and one for each frame.
func (d *HistoryDump) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "history of volume %d, file %08x of store %s, %d B, records behind %d up to %d\n", d.Volume, d.ID, d.Store, d.Size, d.After, d.LastSeq)
	fmt.Fprintf(&b, "  sealed: %v; key %d; %d frames, %d B of payload before compression\n", d.Sealed, d.KeyID, len(d.Frames), d.RawBytes)
	if d.Level > 0 {
		fmt.Fprintf(&b, "  thinned to %s, for the files up to %08x; points %d to %d\n", []string{1: "flushes", 2: "minutes", 3: "hours"}[d.Level], d.Through, d.FirstPoint, d.LastPoint)
	}
	if d.Placed {
		fmt.Fprintf(&b, "  payload lies by blocks: of the %d B that its records wrote, what is equal is there once\n", d.WrittenBytes)
	}
	for i := range d.Sheets {
		fmt.Fprintf(&b, "  a sheet of %d records\n", d.Sheets[i].Records)
		d.Sheets[i].write(&b)
	}
	for _, f := range d.Frames {
		fmt.Fprintf(&b, "  at %d: %d records up to %d, %d B of payload stored as %d B (%s)\n", f.Offset, f.Records, f.LastSeq, f.Raw, f.Stored, f.Codec)
		if f.Did != nil {
			f.Did.write(&b)
		}
	}
	for i := range d.Points {
		d.Points[i].write(&b)
	}
	if !d.Opened && d.Store != "" {
		b.WriteString("  what the records did is sealed: --key-file opens it\n")
	}
	if d.TornBytes > 0 {
		fmt.Fprintf(&b, "  %d B behind the last whole frame\n", d.TornBytes)
	}
	if d.Error != "" {
		fmt.Fprintf(&b, "  %s\n", d.Error)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// historyVolume is what the state says of a volume.
type historyVolume struct{ id, since, last uint64 }

// checkHistory verifies all files of history, and that none is missing at the end.
func (r *run) checkHistory() error {
	dir := filepath.Join(r.dir, historyName)
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r.expect(r.super.ROCompat&superHistory != 0, historyName, 0, "no history without the feature in the superblock", "some")
	volumes, err := r.readHistoryState(filepath.Join(dir, "state"))
	if err != nil {
		return err
	}
	for _, e := range names {
		if !e.IsDir() {
			continue
		}
		i := slices.IndexFunc(volumes, func(v historyVolume) bool { return fmt.Sprintf("%016x", v.id) == e.Name() })
		if i < 0 {
			r.warn(filepath.Join(historyName, e.Name()), 0, "history of a volume that has some", "files that the next start removes")
			continue
		}
		if err := r.checkHistoryOf(volumes[i]); err != nil {
			return err
		}
	}
	return nil
}

// checkHistoryOf verifies the files of one volume, oldest first.
func (r *run) checkHistoryOf(v historyVolume) error {
	dir := filepath.Join(historyName, fmt.Sprintf("%016x", v.id))
	names, err := os.ReadDir(filepath.Join(r.dir, dir))
	if err != nil {
		return err
	}
	last, healthy, first, through := uint64(0), true, true, uint32(0)
	if err := r.checkHistorySidecars(dir, names); err != nil {
		return err
	}
	for _, e := range names {
		unit := filepath.Join(dir, e.Name())
		var id uint32
		if n, _ := fmt.Sscanf(e.Name(), "%08x.", &id); n == 1 && (strings.HasSuffix(e.Name(), historySuffix+".thin") || strings.HasSuffix(e.Name(), historySuffix) && id <= through) {
			r.warn(unit, 0, "files that are in use", "one that the next start removes: a death came while history was thinned")
			continue
		}
		if !strings.HasSuffix(e.Name(), historySuffix) {
			continue
		}
		if err := r.progress(unit); err != nil {
			return err
		}
		d, err := dumpHistory(filepath.Join(r.dir, unit), r.ring)
		if err != nil {
			return err
		}
		if d.Store == "" {
			continue // never begun
		}
		r.rep.Totals.HistoryFiles++
		r.rep.Totals.HistoryBytes += uint64(d.Size)
		if d.Error != "" {
			r.fail(unit, 0, "a file of history that holds together", d.Error)
			healthy = false
			continue
		}
		r.expect(d.Store == fmt.Sprintf("%x", r.super.StoreID[:]) && d.Volume == v.id && fmt.Sprintf("%08x%s", d.ID, historySuffix) == e.Name(), unit, 16, "a file of this store and volume, under its name", fmt.Sprintf("store %s, volume %d, file %08x", d.Store, d.Volume, d.ID))
		r.expect(first || d.After <= last, unit, 80, fmt.Sprintf("the file that has the records behind %d", last), fmt.Sprintf("one of those behind %d", d.After))
		if !d.Sealed && r.super.Flags&superClean != 0 {
			r.fail(unit, d.Size-historyFoot, "a footer, as the store was closed in order", "none that holds")
		}
		last, first, through = d.LastSeq, false, d.Through
	}
	r.expect(!healthy || v.last <= v.since || last >= v.last, dir, 0, fmt.Sprintf("records up to %d, which were synced", v.last), fmt.Sprint(last))
	return nil
}

// readHistoryState reads who has history.
func (r *run) readHistoryState(path string) (volumes []historyVolume, err error) {
	unit := filepath.Join(historyName, "state")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := &fields{b: b}
	f.magic("HNHISTST")
	version := f.u32()
	f.rule(version == 1 || version == 2, 8, "version 1 or 2", "%d", version)
	n := f.u32()
	store := f.take(16)
	f.take(4)
	f.reserved(4)
	f.take(8)
	f.reserved(16)
	f.rule(n <= 4096 && len(b) == historyState+historyRow*int(n)+4, 12, "a length that fits the number of volumes", "%d volumes, %d B", n, len(b))
	for range n {
		if f.err != nil {
			break
		}
		v := historyVolume{id: f.u64()}
		window := f.u64()
		f.take(8)
		v.since, v.last = f.u64(), f.u64()
		if version == 1 {
			f.reserved(24)
		} else {
			most := uint64(0)
			every, flushes, minutes := f.u64(), f.u64(), f.u64()
			for _, age := range []uint64{every, flushes, minutes} {
				f.rule(age == 0 || every > 0 && age > most && age <= window, f.at-24, "ages that grow, up to the window", "%d, %d, %d of %d", every, flushes, minutes, window)
				most = max(most, age)
			}
		}
		volumes = append(volumes, v)
	}
	sum := f.u32()
	if f.err == nil {
		f.err = checkSum(len(b)-4, crc(b[:len(b)-4]), sum)
	}
	if err := f.end(); err != nil {
		r.noteErr(unit, err)
		return nil, nil
	}
	r.expect(string(store) == string(r.super.StoreID[:]), unit, 16, "store "+r.super.StoreID.String(), fmt.Sprintf("%x", store))
	return volumes, nil
}
