package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

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
	var err error
	if s.size, err = s.begin(magic, version); err != nil {
		return nil, err
	}
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

// begin reads the header of a stream.
func (s *Reader) begin(magic string, version uint32) (sizeBytes uint64, err error) {
	h, err := s.header()
	if err != nil {
		return 0, err
	}
	return h.Stream(magic, version, s.corrupt)
}

func (s *Reader) header() (h Header, err error) {
	if err := s.fill(h[:]); err != nil {
		return h, err
	}
	return h, h.Check(s.corrupt)
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
