package pack

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// encoders keep zstd encoders, which have some MiB each.
var encoders = sync.Pool{New: func() any {
	// Window and concurrency of a frame; level 3 of the reference implementation, or so.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(FrameRaw), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // the options are right
	}
	return e
}}

var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxFrameRaw), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		panic(err)
	}
	return d
}}

// Compress appends the chunks of a frame to dst, compressed and ready for Builder.Add, and returns it. It may be called at once.
func Compress(dst, raw []byte) []byte {
	e := encoders.Get().(*zstd.Encoder)
	defer encoders.Put(e)
	return e.EncodeAll(raw, dst)
}

// Builder puts together one pack.
type Builder struct {
	keys   *seal.Keys
	salt   seal.Salt
	box    *seal.Box
	b      []byte
	first  int
	frames []Frame
	chunks int
}

// NewBuilder begins a pack of a session.
func NewBuilder(keys *seal.Keys, session *seal.Session) *Builder {
	h := Header{Repository: keys.Repository, Salt: seal.NewSalt(), Wrapped: session.Wrapped}
	p := &Builder{keys: keys, salt: h.Salt, box: session.Secret.Box(seal.PurposeFrames, h.Salt, keys.Repository)}
	p.b = append(make([]byte, 0, TargetSize+MaxFrameRaw), h.encode()...)
	p.first = len(p.b)
	return p
}

// Add seals a frame into the pack: what Compress made of the chunks one after the other. The chunks are kept, compressed is not.
func (p *Builder) Add(chunks []Chunk, compressed []byte) error {
	f := Frame{Off: uint32(len(p.b)), Chunks: chunks}
	for i := range chunks {
		f.Raw += chunks[i].Raw
	}
	p.b = p.box.Seal(p.b, compressed, uint64(len(p.frames)))
	f.Len = uint32(len(p.b)) - f.Off
	p.frames = append(p.frames, f)
	p.chunks += len(chunks)
	if f.Raw > MaxFrameRaw || len(p.b) > MaxSize-TargetSize || p.chunks > maxChunks {
		return fmt.Errorf("pack of %d B, %d chunks, with a frame of %d B: %w", len(p.b), p.chunks, f.Raw, block.ErrInvalid)
	}
	return nil
}

// Full reports whether the pack shall be closed.
func (p *Builder) Full() bool { return len(p.b) >= TargetSize || p.chunks >= maxChunks/2 }

// Finish returns the whole pack, and what its directory says. The builder must not be used any more.
func (p *Builder) Finish() ([]byte, []Frame) {
	directory := p.keys.Index.Box(seal.PurposeDirectory, p.salt, p.keys.Repository).Seal(nil, AppendDirectory(nil, p.frames), 0)
	p.b = append(p.b, directory...)
	t := Trailer{DirectoryLen: uint32(len(directory)), Frames: uint32(len(p.frames)), Size: uint64(len(p.b) + trailerSize)}
	p.b = append(p.b, t.encode()...)
	return p.b, p.frames
}
