package pack

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// OpenDirectory returns the frames that a sealed directory lists. A writer's keys suffice.
func OpenDirectory(keys *seal.Keys, h *Header, t *Trailer, sealed []byte) ([]Frame, error) {
	plain, err := keys.Index.Box(seal.PurposeDirectory, h.Salt, h.Repository).Open(nil, sealed, 0)
	if err != nil {
		return nil, err
	}
	frames, rest, err := DecodeDirectory(plain, h.Size())
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 || len(frames) != int(t.Frames) {
		return nil, damaged(0, fmt.Sprintf("a directory of %d frames", t.Frames), fmt.Sprint(len(frames)))
	}
	last := &frames[len(frames)-1]
	if end := uint64(last.Off) + uint64(last.Len) + uint64(t.DirectoryLen) + trailerSize; end != t.Size {
		return nil, damaged(int(last.Off), fmt.Sprintf("frames that end at the directory of a pack of %d B", t.Size), fmt.Sprint(end))
	}
	return frames, nil
}

// Reader opens frames of one pack. Its methods may be called at once.
type Reader struct{ box *seal.Box }

// NewReader needs an owner's keys; seal.ErrReadKey without.
func NewReader(keys *seal.Keys, h *Header) (*Reader, error) {
	session, err := keys.OpenSession(h.Wrapped)
	if err != nil {
		return nil, err
	}
	return &Reader{box: session.Box(seal.PurposeFrames, h.Salt, h.Repository)}, nil
}

// Open returns the chunks of a frame one after the other. number is that of the frame in its pack. sealed is overwritten, and not kept. The result is not yet what ids promise: see Verify.
func (r *Reader) Open(f *Frame, number int, sealed []byte) ([]byte, error) {
	compressed, err := r.box.Open(sealed[:0], sealed, uint64(number))
	if err != nil {
		return nil, err
	}
	d := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(d)
	raw, err := d.DecodeAll(compressed, make([]byte, 0, f.Raw))
	if err != nil || len(raw) != int(f.Raw) {
		return nil, damaged(int(f.Off), fmt.Sprintf("%d B of zstd", f.Raw), fmt.Sprintf("%d B, %v", len(raw), err))
	}
	return raw, nil
}

// Correct is Open for a frame that does not open: it tries whether some bytes of one place are wrong (seal.Box.Correct). Chunks must be compared with their ids, as always. sealed is not changed.
func (r *Reader) Correct(f *Frame, number int, sealed []byte) ([]byte, error) {
	fixed, ok := r.box.Correct(sealed, uint64(number), seal.MaxSpan)
	if !ok {
		return nil, damaged(int(f.Off), "a frame in which a few bytes are wrong at most", "another")
	}
	return r.Open(f, number, fixed)
}

// CorrectHeader is DecodeHeader for a header of which one bit is wrong.
func CorrectHeader(b []byte, repository block.UUID) (h *Header, err error) {
	if h, err = DecodeHeader(b, repository); err == nil || len(b) < headerSize {
		return h, err
	}
	b = append([]byte(nil), b...)
	for bit := range 8 * min(len(b), headerSize+int(binary.LittleEndian.Uint16(b[10:]))) {
		b[bit/8] ^= 1 << (bit % 8)
		if fixed, fixedErr := DecodeHeader(b, repository); fixedErr == nil {
			return fixed, nil
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	return nil, err
}

// CorrectTrailer is DecodeTrailer for a trailer of which one bit is wrong.
func CorrectTrailer(b []byte, size int64) (t *Trailer, err error) {
	if t, err = DecodeTrailer(b, size); err == nil {
		return t, nil
	}
	b = append([]byte(nil), b...)
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if fixed, fixedErr := DecodeTrailer(b, size); fixedErr == nil {
			return fixed, nil
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	return nil, err
}

// CorrectDirectory is OpenDirectory for a directory of which some bits of one byte are wrong.
func CorrectDirectory(keys *seal.Keys, h *Header, t *Trailer, sealed []byte) ([]Frame, error) {
	frames, err := OpenDirectory(keys, h, t, sealed)
	if err == nil {
		return frames, nil
	}
	fixed, ok := keys.Index.Box(seal.PurposeDirectory, h.Salt, h.Repository).Correct(sealed, 0, 1)
	if !ok {
		return nil, err
	}
	return OpenDirectory(keys, h, t, fixed)
}

// Verify compares the id of a chunk with its bytes.
func Verify(h *dedup.Hasher, id block.Hash, raw []byte) error {
	if got := h.Sum(raw); got != id {
		return &block.CorruptError{Source: "chunk", Want: id.String(), Got: got.String()}
	}
	return nil
}
