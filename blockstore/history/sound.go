package history

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// soundness holds the bytes of a sealed file against all checksums of the file itself, as they come by from front to back. It looks at heads and checksums of frames, and not into them. What a death left between the last frame and the index has none, and is taken as it is.
type soundness struct {
	f  *file
	ft footer

	at     int64
	part   filePart
	left   int64  // bytes of the part that are to come
	head   []byte // of a part that is gathered
	crc    uint32 // of another
	want   uint32
	frame  frameBounds
	frames uint32
	chain  uint32
	err    error
}

type filePart uint8

const (
	partHeader filePart = iota
	partHead
	partMeta
	partPayload
	partAny
	partIndex
	partFooter
	partEnd
)

// newSoundness reads the footer of a file that lies in src.
func newSoundness(f *file, src io.ReaderAt) (*soundness, error) {
	of := f.bytesID()
	b := make([]byte, footerSize)
	if n, err := src.ReadAt(b, of.size-footerSize); n < len(b) {
		return nil, unreadable(of.size-footerSize, err)
	}
	ft, err := parseFooter(b, &f.header, f.seed, of.size)
	if err == nil && le.Uint32(b[footerSize-4:]) != of.seal {
		err = damaged("the footer that it was opened with", of.size-4)
	}
	if err != nil {
		return nil, err
	}
	return &soundness{f: f, ft: ft, left: headerSize, chain: f.seed}, nil
}

func unreadable(off int64, err error) error {
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return &block.CorruptError{Offset: off, Want: "readable bytes", Got: err.Error()}
}

// feed takes the bytes that follow.
func (c *soundness) feed(b []byte) {
	for c.err == nil && (len(b) > 0 || c.left == 0) && c.part != partEnd {
		n := int(min(int64(len(b)), c.left))
		switch c.part {
		case partHeader, partHead, partFooter:
			c.head = append(c.head, b[:n]...)
		case partMeta, partPayload, partIndex:
			c.crc = crc32.Update(c.crc, castagnoli, b[:n])
		case partAny, partEnd:
		}
		c.at, c.left, b = c.at+int64(n), c.left-int64(n), b[n:]
		if c.left == 0 {
			c.err = c.next()
		}
	}
	if c.err == nil && len(b) > 0 {
		c.err = damaged("the end of the file", c.at)
	}
}

// next checks the part that has come, and says what follows it.
func (c *soundness) next() error {
	switch c.part {
	case partHeader:
		if _, seed, err := ParseHeader(c.head); err != nil {
			return err
		} else if seed != c.f.seed {
			return damaged("the header that it was opened with", headerSize-4)
		}
		return c.follow(partHead)
	case partHead:
		ok := false
		if c.frame, ok = boundsOf(c.head, c.frames, c.chain); !ok {
			return damaged("a frame", c.at-frameSize)
		}
		c.chain, c.frames = c.frame.chain, c.frames+1
		c.part, c.left, c.crc, c.want = partMeta, c.frame.meta, 0, c.frame.metaSum
	case partMeta:
		if c.crc != c.want {
			return damaged("records that match their checksum", c.at-c.frame.meta)
		}
		c.part, c.left, c.crc, c.want = partPayload, c.frame.payload, 0, c.frame.payloadSum
	case partPayload:
		if c.crc != c.want {
			return damaged("payload that matches its checksum", c.at-c.frame.payload)
		}
		return c.follow(partHead)
	case partAny:
		c.part, c.left, c.crc, c.want = partIndex, c.ft.IndexLen, 0, c.ft.IndexSum
	case partIndex:
		if c.crc != c.want {
			return damaged("an index that matches its checksum", c.ft.IndexOff)
		}
		c.part, c.left, c.head = partFooter, footerSize, c.head[:0]
	case partFooter:
		if _, err := parseFooter(c.head, &c.f.header, c.f.seed, c.at); err != nil {
			return err
		}
		c.part = partEnd
	case partEnd:
	}
	return nil
}

// frameBounds is what the head of a frame says of the bytes that follow it.
type frameBounds struct {
	meta, payload       int64 // bytes as stored
	metaSum, payloadSum uint32
	chain               uint32
}

// boundsOf reads a head as far as all versions have it alike, whatever lies in the frame.
func boundsOf(b []byte, ordinal, chain uint32) (f frameBounds, ok bool) {
	f = frameBounds{meta: int64(le.Uint32(b[20:])), payload: int64(le.Uint32(b[28:])), metaSum: le.Uint32(b[48:]), payloadSum: le.Uint32(b[52:]), chain: le.Uint32(b[60:])}
	return f, le.Uint32(b) == frameMagic && le.Uint32(b[4:]) == ordinal && crc32.Update(chain, castagnoli, b[:60]) == f.chain
}

// follow goes on with the next frame, or with what lies behind the last one.
func (c *soundness) follow(part filePart) error {
	c.head = c.head[:0]
	if c.part, c.left = part, frameSize; c.frames == c.ft.Frames {
		c.part, c.left = partAny, c.ft.IndexOff-c.at
	}
	if c.at+c.left > c.ft.IndexOff {
		return damaged("frames that end before the index", c.at)
	}
	return nil
}

// end reports what was wrong, or missing.
func (c *soundness) end() error {
	switch {
	case c.err != nil:
		return c.err
	case c.part != partEnd:
		return damaged("all of the file", c.at)
	case c.chain != c.ft.Chain:
		return damaged("frames that the footer was made for", c.at-4)
	}
	return nil
}

// sound reads a sealed file that lies in src and returns the checksums of its columns, part by part, or what says that it is not what was sealed: a *block.CorruptError that names the file. Another error is the end of ctx.
func (f *file) sound(ctx context.Context, src io.ReaderAt, pace erasure.Pace) (sums [][]uint32, err error) {
	of := f.bytesID()
	c, err := newSoundness(f, src)
	if err != nil {
		return nil, f.name(err)
	}
	for p := range of.parts() {
		n := of.partLen(p)
		part, err := erasure.Sums(ctx, io.NewSectionReader(src, int64(p)*partSize, n), n, pace, c.feed)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, f.name(unreadable(c.at, err))
		}
		sums = append(sums, part)
	}
	if err := c.end(); err != nil {
		return nil, f.name(err)
	}
	return sums, nil
}

// bytesID names the bytes of a file that is sealed.
func (f *file) bytesID() bytesID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytesID{store: f.header.StoreID, id: f.header.ID, size: f.end, seed: f.seed, seal: f.sealSum}
}

// sidecar opens the file's sidecar, if it is that of these bytes.
func (f *file) sidecar() (*sidecar, error) {
	of := f.bytesID()
	sc, err := openSidecar(f.handles.fs, beside(f.path, sidecarSuffix), of.store, of.id, of.size)
	if err != nil {
		return nil, err
	}
	if sc.of != of {
		sc.release()
		return nil, &block.CorruptError{Source: sc.r.path, Want: fmt.Sprintf("parity of a file with header %08x and footer %08x", of.seed, of.seal), Got: fmt.Sprintf("of one with %08x and %08x", sc.of.seed, sc.of.seal)}
	}
	return sc, nil
}

// removeSidecar removes the sidecar of a file that goes.
func (f *file) removeSidecar() error {
	return ignoreMissing(f.handles.fs.Remove(beside(f.path, sidecarSuffix)))
}

// unguard removes the sidecar of a file that stays, or is replaced, durably. Stream.mu is held.
func (f *file) unguard() error {
	err := f.removeSidecar()
	if err == nil {
		err = f.syncBeside()
	}
	if err == nil {
		f.guard.set(erasure.Shape{}, 0)
	}
	return err
}

// syncBeside makes names durable in the directory of a file.
func (f *file) syncBeside() error {
	return vfs.SyncDir(f.handles.fs, f.handles.fs.PathDir(f.path))
}
