package check

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// logFile is a log file that is being read.
type logFile struct {
	path   string // relative to the data directory
	id     uint32 // of its name
	header *logHeader
	footer *logFooter // nil if it is not sealed
	keys   *logKeys   // of an encrypted file, if somebody has them
	// Why there is no header or footer.
	headErr, footErr error
	unused           bool // no header, or that of an earlier life: prepared and never begun

	// What a scan found.
	records uint64
	end     int64
	chain   uint32
	minTime int64
	maxTime int64
	stop    error // what is wrong with the bytes at end; nil if no record fits there
}

// openLogFile reads header and footer of a file.
func openLogFile(dir string, id uint32) (*logFile, *os.File, error) {
	lf := &logFile{path: logPath(id), id: id}
	file, err := os.Open(filepath.Join(dir, lf.path))
	if err != nil {
		return nil, nil, err
	}
	page := make([]byte, logPage)
	if err := readZeroFilled(file, page, 0); err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	if allZero(page) {
		lf.unused = true
		return lf, file, nil
	}
	if lf.header, lf.headErr = parseLogHeader(page); lf.headErr != nil {
		lf.header = nil
		return lf, file, nil
	}
	switch {
	case lf.header.ID < id:
		lf.unused = true
	case lf.header.ID > id:
		lf.headErr = faultf(32, fmt.Sprint("id ", id), "%d", lf.header.ID)
		lf.header = nil
	default:
		if err := readZeroFilled(file, page, lf.header.Capacity-logPage); err != nil {
			return nil, nil, errors.Join(err, file.Close())
		}
		lf.footer, lf.footErr = parseLogFooter(page, lf.header)
	}
	return lf, file, nil
}

func logPath(id uint32) string { return filepath.Join("log", fmt.Sprintf("%08x.log", id)) }

// readZeroFilled fills p; what lies past the end of the file reads as zeroes.
func readZeroFilled(f *os.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	return nil
}

// listLog returns the ids of the files in the log's directory, ascending.
func listLog(dir string) ([]uint32, []string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var ids []uint32
	var others []string
	for _, e := range entries {
		name := e.Name()
		id, err := strconv.ParseUint(name[:min(8, len(name))], 16, 32)
		if err != nil || id == 0 || name != fmt.Sprintf("%08x.log", id) {
			others = append(others, filepath.Join("log", name))
			continue
		}
		ids = append(ids, uint32(id))
	}
	return ids, others, nil
}

// scan reads the records of a file one by one, with headers, chain and payload, and hands each to visit. It ends at the first that is not whole.
func (lf *logFile) scan(file *os.File, lastTime int64, visit func(*logRecord) error) error {
	w := &window{f: file}
	lf.end, lf.chain = logPage, lf.header.seed
	limit := lf.header.Capacity - logPage
	for lf.end+recordHeader <= limit {
		rec, err := lf.record(w, limit, lastTime)
		if err != nil {
			var f *fault
			if errors.As(err, &f) {
				lf.stop = err
				return nil
			}
			return err
		}
		if lf.records == 0 {
			lf.minTime = rec.TimeNs
		}
		lf.records, lf.chain, lf.maxTime, lastTime = lf.records+1, rec.chain, rec.TimeNs, rec.TimeNs
		lf.end += rec.size()
		if err := visit(rec); err != nil {
			return err
		}
	}
	return nil
}

// record reads the record at the end of what is read so far. A fault's offset is in the file.
func (lf *logFile) record(w *window, limit, lastTime int64) (*logRecord, error) {
	b, err := w.get(lf.end, recordHeader)
	if err != nil {
		return nil, err
	}
	rec, err := parseRecord(b, lf.header.seed, lf.header.KeyID != 0)
	if err != nil {
		f := asFault(err)
		f.off += lf.end
		return nil, &f
	}
	rec.At = lf.end
	if rec.Kind >= firstControl {
		rec.tags = append(rec.tags, rec.tag...)
	}
	switch want := lf.header.FirstSeq + lf.records; {
	case rec.Seq != want:
		return nil, faultf(lf.end+8, fmt.Sprint("sequence number ", want), "%d", rec.Seq)
	case rec.TimeNs <= lastTime:
		return nil, faultf(lf.end+16, fmt.Sprint("a time above ", lastTime), "%d", rec.TimeNs)
	case lf.end+rec.size() > limit:
		return nil, faultf(lf.end+60, fmt.Sprintf("an end before %d", limit), "%d", lf.end+rec.size())
	}
	chain := crcMore(lf.chain, b[:88])
	head := [recordHeader]byte(b)
	if rec.Kind >= firstControl {
		return rec, lf.control(w, rec, &head, chain)
	}
	return rec, lf.sectors(w, rec, &head, chain)
}

func (lf *logFile) control(w *window, rec *logRecord, head *[recordHeader]byte, chain uint32) error {
	p, err := w.get(lf.end+recordHeader, int(rec.PayloadLen))
	if err != nil {
		return err
	}
	if crc(p) != rec.payloadSum {
		return faultf(lf.end+recordHeader, fmt.Sprintf("a payload of crc %08x", rec.payloadSum), "%08x", crc(p))
	}
	rec.payload = append([]byte(nil), p...)
	if err := chainFault(lf.end, crcMore(chain, p), rec.chain); err != nil || lf.keys == nil {
		return err
	}
	rec.payload, err = lf.keys.record(head[:], nil, rec.payload, lf.end)
	return err
}

func chainFault(at int64, want, got uint32) error {
	if want != got {
		return faultf(at+92, fmt.Sprintf("chain %08x", want), "%08x", got)
	}
	return nil
}

func (lf *logFile) sectors(w *window, rec *logRecord, head *[recordHeader]byte, chain uint32) error {
	at := lf.end + recordHeader
	descs, err := w.get(at, int(rec.sectors)*descSize)
	if err != nil {
		return err
	}
	if err := chainFault(lf.end, crcMore(chain, descs), rec.chain); err != nil {
		return err
	}
	if lf.keys != nil {
		if _, err := lf.keys.record(head[:], descs, nil, lf.end); err != nil {
			return err
		}
	}
	for i := range int(rec.sectors) {
		d := descs[i*descSize:][:descSize]
		if lf.header.KeyID != 0 {
			rec.tags = append(rec.tags, d[4:]...)
		} else if !allZero(d[4:]) {
			return faultf(at+int64(i*descSize)+4, "zeroes in reserved bytes", "%x", d[4:])
		}
		rec.sums = append(rec.sums, binary.LittleEndian.Uint32(d))
	}
	at = rec.payloadAt()
	for i, sum := range rec.sums {
		p, err := w.get(at+int64(i)*block.Size, block.Size)
		if err != nil {
			return err
		}
		if crc(p) != sum {
			return faultf(at+int64(i)*block.Size, fmt.Sprintf("a block of crc %08x", sum), "%08x", crc(p))
		}
		if lf.keys != nil {
			if err := lf.keys.sector(p, rec.tags[i*sealTag:][:sealTag], at+int64(i)*block.Size); err != nil {
				return err
			}
		}
	}
	return nil
}

// indexReader walks the index of a sealed file beside its records.
type indexReader struct {
	b    []byte
	at   int
	time int64
}

// match compares the next entry with a record.
func (x *indexReader) match(rec *logRecord) error {
	start := x.at
	bad := func(got string) error {
		return faultf(int64(start), fmt.Sprintf("the entry of record %d", rec.Seq), "%s", got)
	}
	if x.at >= len(x.b) || x.b[x.at] != rec.Kind {
		return bad("another kind, or the end")
	}
	x.at++
	for _, want := range []uint64{uint64(rec.Flags), rec.Volume, uint64(rec.MapEpoch), rec.Off, rec.Len, uint64(rec.TimeNs - x.time)} {
		if got, ok := x.varint(); !ok || got != want {
			return bad(fmt.Sprintf("%d instead of %d", got, want))
		}
	}
	x.time = rec.TimeNs
	sums := rec.sums
	if rec.Kind >= firstControl {
		if got, ok := x.varint(); !ok || got != uint64(rec.PayloadLen) {
			return bad(fmt.Sprintf("a payload of %d B", got))
		}
		sums = []uint32{rec.payloadSum}
	}
	for _, want := range sums {
		if len(x.b)-x.at < 4 || binary.LittleEndian.Uint32(x.b[x.at:]) != want {
			return bad("another sum")
		}
		x.at += 4
	}
	if !bytes.HasPrefix(x.b[x.at:], rec.tags) {
		return bad("another authentication tag")
	}
	x.at += len(rec.tags)
	return nil
}

func (x *indexReader) varint() (uint64, bool) {
	v, n := binary.Uvarint(x.b[x.at:])
	if n <= 0 || n > 1 && x.b[x.at+n-1] == 0 {
		return 0, false
	}
	x.at += n
	return v, true
}
