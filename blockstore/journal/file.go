package journal

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// fileSuffix ends the names of log files; the id stands before it in eight hexadecimal digits.
const fileSuffix = ".log"

// logFile is one file of the log. Everything but contents is fixed once the file is in use.
type logFile struct {
	f        vfs.File // where the file is read
	path     string
	home     *place                   // of f; nil where the log has one directory
	others   atomic.Pointer[[]copied] // further copies
	header   FileHeader
	seed     uint32 // of the chain: the checksum of the header
	vault    *vault // of an encrypted log, else nil
	bypass   sync.Once
	direct   *vfs.Direct // around the page cache; nil where that cannot be
	streamed atomic.Bool // some of it is a stream, and the page cache may lack that
	sealed   bool        // its index and footer are durable; guarded by Log.st

	further []vfs.File // other copies, while recovery reads the file

	mapped  sync.Once
	viewing *vfs.View // nil where a file cannot be mapped

	// contents belongs to the appender while the file is active, then to the sealer, then to nobody.
	contents
}

// view returns the file mapped for reading, or nil where that cannot be. The caller holds a pin.
func (f *logFile) view() *vfs.View {
	f.mapped.Do(func() { f.viewing, _ = vfs.Map(f.source(), f.header.Capacity) })
	return f.viewing
}

// around returns the file's handle around the page cache, or nil where there is none. The caller holds a pin or is the appender.
func (f *logFile) around() *vfs.Direct {
	f.bypass.Do(func() { f.direct, _ = vfs.OpenDirect(f.source()) })
	return f.direct
}

// close closes the file. Nobody may be reading it.
func (f *logFile) close() error {
	f.mapped.Do(func() {})
	var err error
	if f.viewing != nil {
		err = f.viewing.Close()
	}
	for _, c := range f.copies() {
		err = errors.Join(err, c.f.Close())
	}
	f.bypass.Do(func() {})
	if f.direct != nil {
		err = errors.Join(err, f.direct.Close())
	}
	return errors.Join(err, f.f.Close())
}

// contents is what the records of a file amount to. Adding to a copy leaves the original as it was, which is how a failed append is undone.
type contents struct {
	end     int64  // offset of the first byte after the last record
	chain   uint32 // after the last record
	records uint64
	minTime int64
	maxTime int64 // of the last record; 0 if there is none
	lastPos Pos
	stream  int64  // bytes of records with FlagStream
	spent   bool   // of an encrypted log: a write failed, and nothing may be sealed where it may have left something
	index   []byte // encoded entries, see appendEntry; nil once the file is sealed
}

// start makes the file ready for its first record.
func (f *logFile) start() { f.contents = contents{end: pageSize, chain: f.seed, index: f.index[:0]} }

// nextSeq returns the sequence number that follows the file's last record.
func (f *logFile) nextSeq() uint64 { return f.header.FirstSeq + f.records }

// dataLimit returns the offset that no record passes: that of the footer.
func (f *logFile) dataLimit() int64 { return f.header.Capacity - pageSize }

// add accounts for a record that is written at the end of the file, with its checksums set.
func (f *logFile) add(h *RecordHeader, sums []uint32) {
	f.index = appendEntry(f.index, h, f.maxTime, sums)
	if f.vault != nil {
		f.index = f.vault.appendTags(f.index, h, h.payloadAt(f.end))
	}
	f.lastPos = recordPos(f.header.ID, f.end, h)
	end := h.end(f.end)
	if h.stream() {
		f.stream += end - f.end
	}
	f.end = end
	f.chain = h.Chain
	if f.records == 0 {
		f.minTime = h.Time
	}
	f.maxTime = h.Time
	f.records++
}

// footer returns the footer that seals the file as it is.
func (f *logFile) footer(indexSum uint32) Footer {
	return Footer{
		ID: f.header.ID, BootEpoch: f.header.BootEpoch, Records: f.records,
		FirstSeq: f.header.FirstSeq, LastSeq: f.nextSeq() - 1, MinTime: f.minTime, MaxTime: f.maxTime,
		DataEnd: f.end, IndexOff: roundUp(f.end), IndexLen: int64(len(f.index)), FinalChain: f.chain, IndexSum: indexSum,
	}
}

// room is the space of a file as records take it: data from the front, the index kept free behind it, the footer in the last page.
type room struct{ end, index, capacity, tagLen int64 }

// emptyRoom is the room of a new file.
func emptyRoom(opts *Options) room {
	return room{end: pageSize, capacity: opts.FileSize, tagLen: opts.tagLen()}
}

// take accounts for one record, or reports that the file has no room for it and its index entry.
func (r *room) take(rec *Record) bool {
	end := payloadAt(r.end, len(rec.Sums), isStream(rec.Kind, rec.Flags)) + int64(rec.payloadLen)
	index := r.index + indexBound(len(rec.Sums)) + r.tagLen*int64(max(1, len(rec.Sums)))
	if roundUp(end)+index > r.capacity-pageSize {
		return false
	}
	r.end, r.index = end, index
	return true
}

// fileName returns the name of a file in the directory of the log.
func fileName(id uint32) string { return fmt.Sprintf("%08x%s", id, fileSuffix) }

// parseFileName is the reverse of fileName.
func parseFileName(name string) (id uint32, ok bool) {
	digits, ok := strings.CutSuffix(name, fileSuffix)
	if !ok || len(digits) != 8 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 32)
	return uint32(n), err == nil && n > 0 && fileName(uint32(n)) == name
}
