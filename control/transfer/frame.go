package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	magic      = "HVSTREAM"
	version    = 1
	headerSize = 32

	// MaxPayload bounds the payload of a data frame, in bytes.
	MaxPayload = 4 << 20
	maxMessage = 4 << 10

	// UnknownSize is the size in the header of a stream whose sender does not know it yet.
	UnknownSize = math.MaxUint64
)

type kind uint32

const (
	kindData kind = 1 + iota
	kindHole
	kindEnd
	kindFailed
)

// frame is what a frame says, without its payload.
type frame struct {
	kind    kind
	payload uint32 // bytes that follow
	off     uint64 // bytes
	length  uint64 // bytes of the content
	sum     uint32 // crc32c of the payload
}

// ErrCut means that a stream ended before its end frame.
var ErrCut = errors.New("stream ended early")

// RemoteError is a failure that the sender reported in the stream.
type RemoteError struct{ Message string }

// Error is the sender's own text.
func (e *RemoteError) Error() string { return e.Message }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer writes a stream. Not for use by several goroutines at once.
type Writer struct {
	w    io.Writer
	off  uint64 // where the next frame begins
	hole uint64 // bytes before off that read as zeroes and are in no frame yet
}

// NewWriter writes the header. sizeBytes may be UnknownSize.
func NewWriter(w io.Writer, sizeBytes uint64) (*Writer, error) {
	var b [headerSize]byte
	copy(b[:], magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint64(b[16:], sizeBytes)
	seal(&b)
	_, err := w.Write(b[:])
	return &Writer{w: w}, err
}

// Data writes the next len(p) bytes of the content. p is not kept.
func (w *Writer) Data(p []byte) error {
	if err := w.writeHole(); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), MaxPayload)
		err := w.frame(frame{kindData, uint32(n), w.off, uint64(n), crc32.Checksum(p[:n], castagnoli)}, p[:n])
		if err != nil {
			return err
		}
		p = p[n:]
		w.off += uint64(n)
	}
	return nil
}

// Hole says that the next length bytes read as zeroes. Holes that touch leave as one frame.
func (w *Writer) Hole(length uint64) {
	w.hole += length
	w.off += length
}

func (w *Writer) writeHole() error {
	if w.hole == 0 {
		return nil
	}
	err := w.frame(frame{kind: kindHole, off: w.off - w.hole, length: w.hole}, nil)
	w.hole = 0
	return err
}

// Offset is how many bytes of content were written.
func (w *Writer) Offset() uint64 { return w.off }

// End ends the stream: its content is complete.
func (w *Writer) End() error {
	if err := w.writeHole(); err != nil {
		return err
	}
	return w.frame(frame{kind: kindEnd, off: w.off}, nil)
}

// Fail ends the stream with the reason why it is not complete.
func (w *Writer) Fail(reason string) error {
	if err := w.writeHole(); err != nil {
		return err
	}
	reason = reason[:min(len(reason), maxMessage)]
	sum := crc32.Checksum([]byte(reason), castagnoli)
	return w.frame(frame{kindFailed, uint32(len(reason)), w.off, 0, sum}, []byte(reason))
}

func (w *Writer) frame(f frame, payload []byte) error {
	var b [headerSize]byte
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(f.kind))
	le.PutUint32(b[4:], f.payload)
	le.PutUint64(b[8:], f.off)
	le.PutUint64(b[16:], f.length)
	le.PutUint32(b[24:], f.sum)
	seal(&b)
	if _, err := w.w.Write(b[:]); err != nil {
		return err
	}
	if len(payload) == 0 {
		return nil
	}
	_, err := w.w.Write(payload)
	return err
}

func seal(b *[headerSize]byte) {
	binary.LittleEndian.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
}

// Reader reads a stream. Not for use by several goroutines at once.
type Reader struct {
	r    io.Reader
	size uint64
	at   int64 // bytes of the stream that were read, to say where it is damaged
	next uint64
	done bool
}

// NewReader reads the header. The error wraps ErrCut, block.ErrVersion or block.ErrCorrupt, or is r's.
func NewReader(r io.Reader) (*Reader, error) {
	s := &Reader{r: r}
	b, err := s.header()
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(b[:8]) != magic {
		return nil, s.corrupt("magic "+magic, fmt.Sprintf("%q", b[:8]))
	}
	if v := le.Uint32(b[8:]); v != version {
		return nil, fmt.Errorf("stream has version %d, this program reads version %d: %w", v, version, block.ErrVersion)
	}
	if le.Uint32(b[12:]) != 0 || le.Uint32(b[24:]) != 0 {
		return nil, s.corrupt("zero in reserved fields", "something else")
	}
	s.size = le.Uint64(b[16:])
	return s, nil
}

// Size is the size that the header announced, in bytes, or UnknownSize.
func (s *Reader) Size() uint64 { return s.size }

// Piece is the next part of a stream's content.
type Piece struct {
	Off    uint64 // bytes
	Length uint64 // bytes
	Data   []byte // Length bytes, or nil for a hole
}

// Next returns the next piece, with its data in a buffer from lend, which is asked for that many bytes. io.EOF means that the content was
// complete, and Off of the piece is its size. Other errors wrap ErrCut or block.ErrCorrupt, are a *RemoteError, or the stream's own.
func (s *Reader) Next(lend func(n int) []byte) (Piece, error) {
	if s.done {
		return Piece{Off: s.next}, io.EOF
	}
	f, err := s.frame()
	if err != nil {
		return Piece{}, err
	}
	piece := Piece{Off: f.off, Length: f.length}
	switch f.kind {
	case kindEnd:
		s.done = true
		return piece, io.EOF
	case kindHole:
		s.next += f.length
		return piece, nil
	case kindFailed:
		text := make([]byte, f.payload)
		if err := s.payload(text, f); err != nil {
			return Piece{}, err
		}
		return Piece{}, &RemoteError{string(text)}
	}
	piece.Data = lend(int(f.payload))
	s.next += f.length
	return piece, s.payload(piece.Data, f)
}

// frame reads a frame's header and checks every field of it.
func (s *Reader) frame() (frame, error) {
	b, err := s.header()
	if err != nil {
		return frame{}, err
	}
	le := binary.LittleEndian
	f := frame{kind(le.Uint32(b[0:])), le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint32(b[24:])}
	if f.off != s.next {
		return f, s.corrupt(fmt.Sprintf("offset %d", s.next), fmt.Sprint(f.off))
	}
	if f.length > block.MaxVolumeSize-min(f.off, block.MaxVolumeSize) {
		return f, s.corrupt("an end within the largest volume", fmt.Sprintf("%d+%d", f.off, f.length))
	}
	var ok bool
	switch f.kind {
	case kindData:
		ok = f.payload > 0 && f.payload <= MaxPayload && uint64(f.payload) == f.length
	case kindHole:
		ok = f.payload == 0 && f.length > 0 && f.sum == 0
	case kindEnd:
		ok = f.payload == 0 && f.length == 0 && f.sum == 0
	case kindFailed:
		ok = f.payload <= maxMessage && f.length == 0
	}
	if !ok {
		return f, s.corrupt("a frame that makes sense", fmt.Sprintf("kind %d, payload %d, length %d", f.kind, f.payload, f.length))
	}
	if f.kind == kindEnd && s.size != UnknownSize && f.off != s.size {
		return f, s.corrupt(fmt.Sprintf("%d bytes of content, as announced", s.size), fmt.Sprint(f.off))
	}
	return f, nil
}

func (s *Reader) header() ([headerSize]byte, error) {
	var b [headerSize]byte
	if err := s.fill(b[:]); err != nil {
		return b, err
	}
	want := crc32.Checksum(b[:headerSize-4], castagnoli)
	if got := binary.LittleEndian.Uint32(b[headerSize-4:]); got != want {
		return b, s.corrupt(fmt.Sprintf("header crc %08x", want), fmt.Sprintf("%08x", got))
	}
	return b, nil
}

func (s *Reader) payload(p []byte, f frame) error {
	if err := s.fill(p); err != nil {
		return err
	}
	if got := crc32.Checksum(p, castagnoli); got != f.sum {
		return s.corrupt(fmt.Sprintf("payload crc %08x", f.sum), fmt.Sprintf("%08x", got))
	}
	return nil
}

func (s *Reader) fill(p []byte) error {
	n, err := io.ReadFull(s.r, p)
	s.at += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("after %d bytes of content: %w", s.next, ErrCut)
	}
	return err
}

func (s *Reader) corrupt(want, got string) error {
	return &block.CorruptError{Source: "stream", Offset: s.at, Want: want, Got: got}
}
