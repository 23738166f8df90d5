package history

import (
	"sync"

	"github.com/klauspost/compress/zstd"
)

// packing holds what compresses and decompresses the payload of files that were thinned. It is made when it is first used, as it takes some MiB.
type packing struct {
	in, out sync.Once
	enc     *zstd.Encoder
	dec     *zstd.Decoder
	err     error // of making the decoder
}

// pack appends a payload as it is stored to dst, or returns nil where there is nothing that compresses.
func (p *packing) pack(dst, body []byte) []byte {
	p.in.Do(func() {
		p.enc, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(maxFrameRaw))
	})
	if p.enc == nil {
		return nil
	}
	return p.enc.EncodeAll(body, dst)
}

// unpack returns a payload of a given length; another length is an error.
func (p *packing) unpack(b []byte, size int) ([]byte, error) {
	p.out.Do(func() {
		p.dec, p.err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxFrameRaw), zstd.WithDecoderMaxWindow(maxFrameRaw), zstd.WithDecodeAllCapLimit(true))
	})
	if p.err != nil {
		return nil, p.err
	}
	return p.dec.DecodeAll(b, make([]byte, 0, size))
}

// close ends what was made. Nobody reads any more.
func (p *packing) close() {
	if p.dec != nil {
		p.dec.Close()
	}
	if p.enc != nil {
		_ = p.enc.Close()
	}
}
