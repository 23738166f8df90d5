package history

import (
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/s2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// Stream is the history of one volume. Its methods may be called from any number of goroutines.
type Stream struct {
	s      *Set
	volume block.VolumeID

	thinning sync.Mutex  // held by one who thins; before mu
	gone     atomic.Bool // it was removed, or is being closed: who thins it stops

	mu    sync.Mutex
	files []*file // oldest first; the last one may be open

	// What goes into the next frame.
	meta    metaWriter
	payload []byte
	sums    []uint32
	void    int    // changes without payload since the last sector, in the open file
	unsure  bool   // whether the names of files that were replaced are durable is not known
	part    bool   // the last record goes on
	whole   uint64 // last record that is whole, in the frame or before it
	packed  []byte // scratch
}

// LastSeq is the sequence number of the last record that is whole; 0: there is none.
func (st *Stream) LastSeq() uint64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.lastLocked()
}

func (st *Stream) lastLocked() uint64 {
	if st.meta.n > 0 {
		return st.whole
	}
	if n := len(st.files); n > 0 {
		return st.files[n-1].lastSeq
	}
	return 0
}

// Bytes is what the stream takes on disk.
func (st *Stream) Bytes() (n int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		n += f.end
	}
	return n
}

// BytesBehind is what the files take on disk that have records after seq.
func (st *Stream) BytesBehind(seq uint64) (n int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for i := len(st.files) - 1; i >= 0 && st.files[i].lastSeq > seq; i-- {
		n += st.files[i].end
	}
	return n
}

// Append adds a record behind all others; its sequence number is not below theirs. It is durable after Sync. An error leaves the stream as if the record had not come, but for parts that went into earlier frames; where it is of a write to the
// file, what came since the last Sync may be gone, too.
func (st *Stream) Append(r *Record) error {
	if r.Kind == Write && r.Len != uint64(len(r.Payload)) {
		return badWrite(r)
	}
	return st.append(r, nil)
}

// AppendRead is Append of a Write that has no payload: read fills it in, r.Len bytes, at the place from which it is compressed. Its error is that of the call.
func (st *Stream) AppendRead(r *Record, read func(p []byte) error) error {
	if r.Kind != Write || len(r.Payload) > 0 {
		return badWrite(r)
	}
	return st.append(r, read)
}

func badWrite(r *Record) error {
	return fmt.Errorf("append a write of %d bytes at %d to history: %w", r.Len, r.Off, block.ErrInvalid)
}

func (st *Stream) append(r *Record, read func(p []byte) error) error {
	if err := checkLabel(r.Label); err != nil {
		return err
	}
	n := 0 // bytes of payload
	if r.Kind == Write {
		if r.Off%sectorSize != 0 || r.Len == 0 || r.Len%sectorSize != 0 || r.Len > FrameRaw {
			return badWrite(r)
		}
		n = int(r.Len)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if last := st.lastLocked(); r.Seq < last {
		return fmt.Errorf("append record %d to history behind %d: %w", r.Seq, last, block.ErrInvalid)
	}
	if err := st.makeRoom(n); err != nil {
		return err
	}
	payload, err := st.take(r, n, read)
	if err != nil {
		return err
	}
	st.sums = append(st.sums[:0], r.Sums...)
	if len(r.Sums)*sectorSize != n {
		st.sums = st.sums[:0]
		for p := payload; len(p) > 0; p = p[sectorSize:] {
			st.sums = append(st.sums, crc32.Checksum(p[:sectorSize], castagnoli))
		}
	}
	if st.meta.n == 0 {
		st.whole = st.lastLocked()
	}
	st.meta.add(r, st.sums)
	st.payload = st.payload[:len(st.payload)+n]
	switch {
	case r.Kind == Write:
		st.void = 0
	case !r.Kind.Point():
		st.void++
	}
	if st.part = r.Part; !r.Part {
		st.whole = r.Seq
	}
	return nil
}

// take gets the payload of a record, n bytes, to where it belongs, behind what was gathered.
func (st *Stream) take(r *Record, n int, read func(p []byte) error) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if st.payload == nil {
		st.payload = vfs.AlignedBuffer(FrameRaw)[:0]
	}
	p := st.payload[len(st.payload):][:n]
	if read != nil {
		return p, read(p)
	}
	copy(p, r.Payload)
	return p, nil
}

// makeRoom writes the frame that is being filled if a record with so many bytes of payload does not fit into it, and begins a file where one is needed.
func (st *Stream) makeRoom(payload int) error {
	if len(st.payload)+payload > FrameRaw || len(st.meta.b) > maxFrameMeta-4096 {
		if err := st.writeFrame(); err != nil {
			return err
		}
	}
	f := st.open()
	full := f != nil && (f.end >= maxFileStored || f.indexSize() >= maxIndexFull || int64(f.raw) > MaxFileRaw-longestRecord || st.void >= maxVoid-2)
	if full && !st.part { // no record lies in two files
		if err := st.rollLocked(); err != nil {
			return err
		}
		f = nil
	}
	if f != nil {
		return nil
	}
	f, err := st.s.newFile(st.volume, st.lastLocked())
	if err != nil {
		return err
	}
	if len(st.files) > 0 {
		f.lastTime = st.files[len(st.files)-1].lastTime
	}
	st.files, st.void = append(st.files, f), 0
	return nil
}

// open returns the file that is being filled, or nil.
func (st *Stream) open() *file {
	if n := len(st.files); n > 0 && !st.files[n-1].sealed && !st.files[n-1].spent {
		return st.files[n-1]
	}
	return nil
}

// Abandon gives up what was appended and is in no frame yet, and the file that is being filled as far as more could be appended to it. Frames that were written stay. It is how an owner goes on after an error, with a gap.
func (st *Stream) Abandon() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.meta.reset()
	st.payload, st.part = st.payload[:0], false
	if f := st.open(); f != nil && f.seal() != nil {
		f.spent = true // an open reads it frame by frame
	}
}

// writeFrame appends what was gathered to the open file.
func (st *Stream) writeFrame() error {
	if st.meta.n == 0 {
		return nil
	}
	f := st.open()
	if f == nil {
		return fmt.Errorf("history of volume %d: %w", st.volume, errSpent)
	}
	h := frameHeader{Records: st.meta.n, PayloadRaw: uint32(len(st.payload)), LastSeq: st.whole, LastTime: max(f.lastTime, st.meta.time)}
	body := st.payload
	if len(body) > 0 && !dedup.Incompressible(body) {
		if st.packed = s2.Encode(st.packed[:cap(st.packed)], body); len(st.packed) < len(body)-len(body)/20 {
			body, h.Codec = st.packed, codecS2
		}
	}
	f.gather()
	if err := f.put(&h, st.meta.b, body); err != nil {
		return err
	}
	st.meta.reset()
	st.payload = st.payload[:0]
	return nil
}

// errSpent says that a write to the file that was being filled has failed: Abandon comes first.
var errSpent = errors.New("an earlier write failed")

// Sync makes all records durable whose Append had returned.
func (st *Stream) Sync() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.writeFrame(); err != nil {
		return err
	}
	f := st.open()
	if f == nil || !f.unsynced {
		return nil
	}
	if err := f.flush(); err != nil {
		return err
	}
	if err := vfs.DataSync(f.f); err != nil {
		return f.fail("sync", err)
	}
	f.unsynced, f.burst = false, 0
	return nil
}

// Roll seals the file that is being filled, durably; the next record begins another one.
func (st *Stream) Roll() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.writeFrame(); err != nil {
		return err
	}
	return st.rollLocked()
}

func (st *Stream) rollLocked() error {
	f := st.open()
	if f == nil {
		return nil
	}
	if err := st.writeFrame(); err != nil {
		return err
	}
	return f.seal()
}

// sealSpent seals what could not be sealed when a write had failed, as the next open would: behind whatever is there.
func (st *Stream) sealSpent() (err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		if f.sealed || f.f == nil {
			continue
		}
		info, e := f.f.Stat()
		if e == nil {
			f.mu.Lock()
			f.end = max(f.end, info.Size())
			f.mu.Unlock()
			e = f.seal()
		}
		err = errors.Join(err, e)
	}
	return err
}

// Pin keeps the files that are there with records of [from, to] until the returned release is called. It does not read them.
func (st *Stream) Pin(from, to uint64) (release func()) {
	st.mu.Lock()
	defer st.mu.Unlock()
	var held []*file
	for _, f := range st.files {
		if f.header.After < to && f.lastSeq >= from {
			f.mu.Lock()
			f.mu.pins++
			f.mu.Unlock()
			held = append(held, f)
		}
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			for _, f := range held {
				f.unpin()
			}
		})
	}
}

// Each calls visit for the records with from ≤ seq ≤ to in order. It reads indexes only; the caller has pinned the range. What was appended and not synced is not there yet. Where the file is missing that the range begins in, it
// is block.ErrCorrupt; from 0 on there may be any.
func (st *Stream) Each(from, to uint64, visit func(*Record) error) error {
	st.mu.Lock()
	files := append([]*file(nil), st.files...)
	last := make([]uint64, len(files))
	for i, f := range files {
		last[i] = f.lastSeq
	}
	st.mu.Unlock()
	begun := from == 0
	for i, f := range files {
		if f.header.After >= to || last[i] < from { // what of a record was left behind by a death comes again, whole, in the next file
			continue
		}
		if !begun && f.header.After >= from {
			return f.name(damaged(fmt.Sprintf("the file that has the records from %d to %d", from, f.header.After), 80))
		}
		begun = true
		err := f.each(func(r *Record) error {
			if r.Seq < from || r.Seq > to {
				return nil
			}
			return visit(r)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Expire removes the oldest files that hold nothing after seq, up to the first one that somebody reads or that is being filled. It returns what that gave back, in bytes.
func (st *Stream) Expire(seq uint64) (freed int64, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for len(st.files) > 0 {
		f := st.files[0]
		f.mu.Lock()
		keep := f.mu.pins > 0 || !f.sealed && !f.spent || f.lastSeq > seq
		f.mu.Unlock()
		if keep {
			return freed, err
		}
		freed += f.end
		if e := st.s.drop(f); e != nil {
			err = errors.Join(err, f.name(e))
		}
		st.files = st.files[1:]
	}
	return freed, err
}

// Expirable is what Expire would give back, in bytes, if nobody read anything.
func (st *Stream) Expirable(seq uint64) (bytes int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		f.mu.Lock()
		keep := !f.sealed && !f.spent || f.lastSeq > seq
		f.mu.Unlock()
		if keep {
			return bytes
		}
		bytes += f.end
	}
	return bytes
}

// Held reports whether somebody reads the oldest file, so that nothing can expire.
func (st *Stream) Held() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.files) == 0 {
		return false
	}
	f := st.files[0]
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.pins > 0
}

// InUse reports whether somebody reads the stream.
func (st *Stream) InUse() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		f.mu.Lock()
		pins := f.mu.pins
		f.mu.Unlock()
		if pins > 0 {
			return true
		}
	}
	return false
}

// remove drops every file, unless somebody reads one.
func (st *Stream) remove() (err error) {
	if st.InUse() {
		return fmt.Errorf("history of volume %d: somebody reads it: %w", st.volume, block.ErrInUse)
	}
	defer st.stopThinning()()
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		err = errors.Join(err, st.s.drop(f))
	}
	st.files, st.payload = nil, nil
	st.meta.reset()
	return err
}

func (st *Stream) closeFiles() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		f.discard()
		_ = st.s.handles.drop(f)
	}
}
