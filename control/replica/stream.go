package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/s2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// These constants are part of the wire format and should not be changed.
const (
	magic      = "HVREPLIC"
	version    = 1
	maxMessage = 4 << 10

	// MaxPiece bounds the bytes of a piece of data, and of its payload.
	MaxPiece = 1 << 20

	kindData   uint32 = 1 // the payload is the data
	kindPacked uint32 = 2 // the payload is an S2 block (github.com/klauspost/compress/s2) of the data, and shorter
	kindZero   uint32 = 3 // no payload: these bytes read as zeroes
	kindEnd    uint32 = 4 // no payload; the offset is the size of the volume: the point is complete
	kindFailed uint32 = 5 // the payload is a text that says why it is not
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer writes a stream. Not for use by several goroutines at once.
type Writer struct {
	w      io.Writer
	size   uint64
	next   uint64 // where the next piece begins at the earliest
	packed []byte
}

// NewWriter writes the header of a stream about a volume of that size.
func NewWriter(w io.Writer, sizeBytes uint64) (*Writer, error) {
	h := transfer.NewHeader(magic, version, sizeBytes)
	_, err := w.Write(h[:])
	return &Writer{w: w, size: sizeBytes}, err
}

// Data says what the bytes at off are. At most MaxPiece of them; p is not kept.
func (w *Writer) Data(off uint64, p []byte) error {
	kind, payload := kindData, p
	if w.packed == nil {
		w.packed = make([]byte, s2.MaxEncodedLen(MaxPiece))
	}
	if packed := s2.Encode(w.packed, p); len(packed) < len(p)-len(p)/16 {
		kind, payload = kindPacked, packed
	}
	return w.frame(kind, off, uint64(len(p)), payload)
}

// Zero says that the bytes of a range read as zeroes.
func (w *Writer) Zero(off, length uint64) error { return w.frame(kindZero, off, length, nil) }

// End ends the stream: the point is complete.
func (w *Writer) End() error { return w.frame(kindEnd, w.size, 0, nil) }

// Fail ends the stream with the reason why the point is not complete.
func (w *Writer) Fail(reason string) error {
	return w.frame(kindFailed, w.next, 0, []byte(reason[:min(len(reason), maxMessage)]))
}

func (w *Writer) frame(kind uint32, off, length uint64, payload []byte) error {
	if off < w.next || off > w.size || length > w.size-off || kind == kindData && length > MaxPiece {
		return fmt.Errorf("piece of %d B at %d of a stream that is at %d of %d: %w", length, off, w.next, w.size, block.ErrInvalid)
	}
	var b transfer.Header
	le := binary.LittleEndian
	le.PutUint32(b[0:], kind)
	le.PutUint32(b[4:], uint32(len(payload)))
	le.PutUint64(b[8:], off)
	le.PutUint64(b[16:], length)
	le.PutUint32(b[24:], crc32.Checksum(payload, castagnoli))
	b.Seal()
	w.next = off + length
	if _, err := w.w.Write(b[:]); err != nil || len(payload) == 0 {
		return err
	}
	_, err := w.w.Write(payload)
	return err
}

// Piece is a part of what has changed.
type Piece struct {
	Off, Length uint64
	Data        []byte // valid until the next call; nil: these bytes read as zeroes
}

// Reader reads a stream that may come from anybody: nothing is believed before it is checked, and at most 2 MiB are held. Not for use by several goroutines at once.
type Reader struct {
	r       io.Reader
	size    uint64
	next    uint64
	at      int64 // bytes of the stream that were read, to say where it is damaged
	done    bool
	data    []byte
	payload []byte
}

// NewReader reads the header. The error wraps transfer.ErrCut, block.ErrVersion or block.ErrCorrupt, or is r's.
func NewReader(r io.Reader) (*Reader, error) {
	s := &Reader{r: r}
	h, err := s.header()
	if err == nil {
		s.size, err = h.Stream(magic, version, s.corrupt)
	}
	if err != nil {
		return nil, err
	}
	if s.size == 0 || s.size > block.MaxVolumeSize || s.size%block.SectorSize != 0 {
		return nil, s.corrupt("a size that a volume can have", fmt.Sprint(s.size))
	}
	return s, nil
}

// Size is the size of the volume in bytes, of which pieces are parts: one that a volume can have.
func (s *Reader) Size() uint64 { return s.size }

// Next returns the next piece. io.EOF means that the point is complete. Other errors wrap transfer.ErrCut or block.ErrCorrupt, are a *transfer.RemoteError, or the stream's own.
func (s *Reader) Next() (Piece, error) {
	if s.done {
		return Piece{}, io.EOF
	}
	b, err := s.header()
	if err != nil {
		return Piece{}, err
	}
	le := binary.LittleEndian
	kind, payload, sum := le.Uint32(b[0:]), uint64(le.Uint32(b[4:])), le.Uint32(b[24:])
	p := Piece{Off: le.Uint64(b[8:]), Length: le.Uint64(b[16:])}
	if p.Off < s.next || p.Off > s.size || p.Length > s.size-p.Off {
		return Piece{}, s.corrupt(fmt.Sprintf("a piece within %d and %d", s.next, s.size), fmt.Sprintf("%d B at %d", p.Length, p.Off))
	}
	var ok bool
	switch kind {
	case kindData:
		ok = payload == p.Length && payload > 0 && payload <= MaxPiece
	case kindPacked:
		ok = payload < p.Length && payload > 0 && p.Length <= MaxPiece
	case kindZero:
		ok = payload == 0 && p.Length > 0
	case kindEnd:
		ok = payload == 0 && p.Length == 0 && p.Off == s.size
	case kindFailed:
		ok = payload <= maxMessage && p.Length == 0
	}
	if !ok || p.Off%block.SectorSize != 0 || p.Length%block.SectorSize != 0 {
		return Piece{}, s.corrupt("a frame that makes sense", fmt.Sprintf("kind %d, payload %d, %d B at %d", kind, payload, p.Length, p.Off))
	}
	s.next = p.Off + p.Length
	switch kind {
	case kindZero:
		return p, nil
	case kindEnd:
		s.done = true
		return Piece{}, io.EOF
	case kindFailed:
		text, err := s.take(payload, sum)
		if err != nil {
			return Piece{}, err
		}
		return Piece{}, &transfer.RemoteError{Message: string(text)}
	}
	if p.Data, err = s.take(payload, sum); err != nil || kind == kindData {
		return p, err
	}
	p.Data, err = s.unpack(p.Data, int(p.Length))
	return p, err
}

// take reads a payload, whose length was checked.
func (s *Reader) take(n uint64, sum uint32) ([]byte, error) {
	if s.payload == nil {
		s.payload = make([]byte, MaxPiece)
	}
	p := s.payload[:n]
	if err := s.fill(p); err != nil {
		return nil, err
	}
	if got := crc32.Checksum(p, castagnoli); got != sum {
		return nil, s.corrupt(fmt.Sprintf("payload crc %08x", sum), fmt.Sprintf("%08x", got))
	}
	return p, nil
}

func (s *Reader) unpack(packed []byte, length int) ([]byte, error) {
	if got, err := s2.DecodedLen(packed); err != nil || got != length {
		return nil, s.corrupt(fmt.Sprintf("an S2 block of %d B", length), fmt.Sprintf("%d B, %v", got, err))
	}
	if s.data == nil {
		s.data = make([]byte, MaxPiece)
	}
	data, err := s2.Decode(s.data[:length], packed)
	if err != nil || len(data) != length {
		return nil, s.corrupt("an S2 block", fmt.Sprint(err))
	}
	return data, nil
}

func (s *Reader) header() (h transfer.Header, err error) {
	if err := s.fill(h[:]); err != nil {
		return h, err
	}
	return h, h.Check(s.corrupt)
}

func (s *Reader) fill(p []byte) error {
	n, err := io.ReadFull(s.r, p)
	s.at += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("at %d of %d B of the volume: %w", s.next, s.size, transfer.ErrCut)
	}
	return err
}

func (s *Reader) corrupt(want, got string) error {
	return &block.CorruptError{Source: "replication stream", Offset: s.at, Want: want, Got: got}
}
