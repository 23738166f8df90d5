package transfer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// The stream of a live restore (docs/format/live.md), integers little-endian: the header of a stream with another magic, and frames of the same form, which come in any order.
//
//	kind 1 data     payload = length, at most 4 MiB
//	kind 2 zero     payload = 0; length bytes that read as zeroes, at most 4 MiB
//	kind 3 reached  payload = 0; length = 0; everything before offset that was not sent reads as zeroes
//	kind 4 failed   payload = a message of at most 4 KiB; length bytes that cannot be had, at most 4 MiB
//
// Offsets are multiples of 4 KiB, and so are ends, but for the end of the content. These constants are part of the wire format and should not be changed.
const (
	liveMagic   = "HVLIVE\r\n"
	liveVersion = 1
)

// LiveKind is what a frame of a live restore is.
type LiveKind uint32

// The kinds of frames.
const (
	LiveData LiveKind = 1 + iota
	LiveZero
	LiveReached
	LiveFailed
)

// LiveFrame is one frame of a live restore. Offsets and lengths are bytes of the content.
type LiveFrame struct {
	Kind    LiveKind
	Off     uint64
	Length  uint64
	Data    []byte // of LiveData
	Message string // of LiveFailed
}

// LiveWriter writes the stream of a live restore. Not for use by several goroutines at once. Each frame is one write.
type LiveWriter struct {
	w io.Writer
	b []byte
}

// NewLiveWriter writes the header. sizeBytes is that of the content.
func NewLiveWriter(w io.Writer, sizeBytes uint64) (*LiveWriter, error) {
	h := NewHeader(liveMagic, liveVersion, sizeBytes)
	_, err := w.Write(h[:])
	return &LiveWriter{w: w}, err
}

// Data sends the content at off: at most MaxPayload bytes. p is not kept.
func (w *LiveWriter) Data(off uint64, p []byte) error {
	return w.frame(LiveData, off, uint64(len(p)), p)
}

// Zero says that a range of at most MaxPayload bytes reads as zeroes.
func (w *LiveWriter) Zero(off, length uint64) error { return w.frame(LiveZero, off, length, nil) }

// Reached says that everything before off was sent or reads as zeroes.
func (w *LiveWriter) Reached(off uint64) error { return w.frame(LiveReached, off, 0, nil) }

// Failed says that a range of at most MaxPayload bytes cannot be had, and why.
func (w *LiveWriter) Failed(off, length uint64, why string) error {
	return w.frame(LiveFailed, off, length, []byte(why[:min(len(why), maxMessage)]))
}

func (w *LiveWriter) frame(k LiveKind, off, length uint64, payload []byte) error {
	var b Header
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(k))
	le.PutUint32(b[4:], uint32(len(payload)))
	le.PutUint64(b[8:], off)
	le.PutUint64(b[16:], length)
	if len(payload) > 0 {
		le.PutUint32(b[24:], crc32.Checksum(payload, castagnoli))
	}
	b.Seal()
	w.b = append(append(w.b[:0], b[:]...), payload...)
	_, err := w.w.Write(w.b)
	return err
}

// LiveReader reads the stream of a live restore. Not for use by several goroutines at once.
type LiveReader struct {
	s    Reader // for its headers and its place
	size uint64
}

// NewLiveReader reads the header. The error wraps ErrCut, block.ErrVersion or block.ErrCorrupt, or is r's.
func NewLiveReader(r io.Reader) (*LiveReader, error) {
	l := &LiveReader{s: Reader{r: r}}
	var err error
	if l.size, err = l.s.begin(liveMagic, liveVersion); err != nil {
		return nil, err
	}
	if l.size == 0 || l.size > block.MaxVolumeSize {
		return nil, l.s.corrupt("a size that a volume can have", fmt.Sprint(l.size))
	}
	return l, nil
}

// Size is that of the content, bytes.
func (l *LiveReader) Size() uint64 { return l.size }

// Next returns the next frame, with its data in a buffer from lend, which is asked for that many bytes. Errors wrap ErrCut or block.ErrCorrupt, or are the stream's own.
func (l *LiveReader) Next(lend func(n int) []byte) (LiveFrame, error) {
	b, err := l.s.header()
	if err != nil {
		return LiveFrame{}, err
	}
	le := binary.LittleEndian
	f := LiveFrame{Kind: LiveKind(le.Uint32(b[0:])), Off: le.Uint64(b[8:]), Length: le.Uint64(b[16:])}
	payload, sum := le.Uint32(b[4:]), le.Uint32(b[24:])
	if err := l.check(&f, payload, sum); err != nil {
		return f, err
	}
	if payload == 0 {
		return f, nil
	}
	if f.Kind == LiveData {
		f.Data = lend(int(payload))
		return f, l.s.payload(f.Data, frame{sum: sum})
	}
	text := make([]byte, payload)
	err = l.s.payload(text, frame{sum: sum})
	f.Message = string(text)
	return f, err
}

// check looks at every field of a frame's header.
func (l *LiveReader) check(f *LiveFrame, payload, sum uint32) error {
	if f.Off > l.size || f.Length > l.size-f.Off {
		return l.s.corrupt(fmt.Sprintf("a range within %d", l.size), fmt.Sprintf("%d+%d", f.Off, f.Length))
	}
	whole := func(off uint64) bool { return off%block.Size == 0 || off == l.size }
	ok := whole(f.Off) && whole(f.Off+f.Length)
	switch f.Kind {
	case LiveData:
		ok = ok && payload > 0 && payload <= MaxPayload && uint64(payload) == f.Length
	case LiveZero:
		ok = ok && payload == 0 && f.Length > 0 && f.Length <= MaxPayload && sum == 0
	case LiveReached:
		ok = ok && payload == 0 && f.Length == 0 && sum == 0
	case LiveFailed:
		ok = ok && payload <= maxMessage && f.Length > 0 && f.Length <= MaxPayload
	default:
		ok = false
	}
	if !ok {
		return l.s.corrupt("a frame that makes sense", fmt.Sprintf("kind %d, payload %d, offset %d, length %d", f.Kind, payload, f.Off, f.Length))
	}
	return nil
}
