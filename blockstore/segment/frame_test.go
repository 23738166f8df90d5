package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

func TestFrameRoundTrip(t *testing.T) {
	many := make([]segment.Chunk, segment.MaxFrameChunks)
	for i := range many {
		many[i] = chunk(i+1, []byte{byte(i), byte(i >> 8)})
	}
	for name, chunks := range map[string][]segment.Chunk{
		"one byte":       {chunk(1, []byte{0})},
		"text":           {chunk(1, textBytes(1, 16<<10))},
		"random":         {chunk(1, randomBytes(1, 16<<10))},
		"mixed":          {chunk(1, textBytes(2, 5000)), chunk(1<<62, randomBytes(2, 777)), chunk(3, make([]byte, 60000))},
		"largest":        {chunk(1, textBytes(3, segment.MaxFrameRaw-1)), chunk(2, []byte("x"))},
		"largest random": {chunk(1, randomBytes(3, segment.MaxFrameRaw))},
		"most chunks":    many,
	} {
		for _, codec := range []segment.Codec{segment.None, segment.S2, segment.Zstd} {
			t.Run(fmt.Sprintf("%s/%v", name, codec), func(t *testing.T) {
				prefix := []byte("what was there")
				b, err := segment.EncodeFrame(bytes.Clone(prefix), chunks, codec, segment.NewEncoder())
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.HasPrefix(b, prefix) {
					t.Fatal("EncodeFrame did not append")
				}
				b = b[len(prefix):]
				checkFrame(t, b, chunks)
				checkFrame(t, append(b, "what follows"...), chunks)
			})
		}
	}
}

func TestFrameIsStoredRawWhenThatIsAsGood(t *testing.T) {
	for _, codec := range []segment.Codec{segment.S2, segment.Zstd} {
		for name, c := range map[string]struct {
			raw  []byte
			want segment.Codec
		}{
			"text":         {textBytes(1, 16<<10), codec},
			"random":       {randomBytes(1, 16<<10), segment.None},
			"short random": {randomBytes(1, 100), segment.None},
			"barely":       {append(randomBytes(1, 16<<10), make([]byte, 300)...), segment.None},
		} {
			b := encode(t, codec, chunk(1, c.raw))
			f, err := segment.ParseFrame(b)
			if err != nil || f.Codec != c.want || int(f.Size) != len(b) || int(f.RawLen) != len(c.raw) {
				t.Errorf("%s with %v: %+v, %v", name, codec, f, err)
			}
			if len(b) > 64+48+len(c.raw) {
				t.Errorf("%s with %v: %d B for %d", name, codec, len(b), len(c.raw))
			}
		}
	}
}

func TestEncodeFrameRefuses(t *testing.T) {
	for name, chunks := range map[string][]segment.Chunk{
		"no chunk":    nil,
		"empty chunk": {chunk(1, []byte("x")), {ID: 2}},
		"too long":    {chunk(1, make([]byte, segment.MaxFrameRaw)), chunk(2, []byte("x"))},
		"too many":    make([]segment.Chunk, segment.MaxFrameChunks+1),
	} {
		if name == "too many" {
			for i := range chunks {
				chunks[i] = segment.Chunk{ID: 1, Raw: []byte("x")}
			}
		}
		if _, err := segment.EncodeFrame(nil, chunks, segment.S2, segment.NewEncoder()); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := segment.EncodeFrame(nil, []segment.Chunk{chunk(1, textBytes(1, 5000))}, 9, segment.NewEncoder()); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("unknown codec: %v", err)
	}
}

func TestFrameDamageIsDetected(t *testing.T) {
	for _, codec := range []segment.Codec{segment.None, segment.S2, segment.Zstd} {
		b := encode(t, codec, chunk(1, textBytes(1, 600)), chunk(2, textBytes(2, 300)))
		for n := range b {
			if _, err := segment.ParseFrame(b[:n]); !errors.Is(err, block.ErrCorrupt) {
				t.Fatalf("%v cut to %d of %d B: %v", codec, n, len(b), err)
			}
			for _, bit := range []byte{1, 0x80} {
				b[n] ^= bit
				if _, err := segment.ParseFrame(b); !errors.Is(err, block.ErrCorrupt) {
					t.Fatalf("%v with byte %d of %d flipped: %v", codec, n, len(b), err)
				}
				b[n] ^= bit
			}
		}
		checkFrame(t, b, []segment.Chunk{chunk(1, textBytes(1, 600)), chunk(2, textBytes(2, 300))})
	}
}

// A frame whose checksums are right but whose fields are not must be refused too, without large allocations.
func TestHostileFrames(t *testing.T) {
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"version 2":         {func(b []byte) { b[4] = 2 }, block.ErrVersion},
		"codec 3":           {func(b []byte) { b[5] = 3 }, block.ErrCorrupt},
		"codec none":        {func(b []byte) { b[5] = 0 }, block.ErrCorrupt},
		"codec zstd":        {func(b []byte) { b[5] = 2 }, block.ErrCorrupt},
		"flag":              {func(b []byte) { b[6] = 1 }, block.ErrCorrupt},
		"no chunks":         {func(b []byte) { le.PutUint32(b[8:], 0) }, block.ErrCorrupt},
		"2^32-1 chunks":     {func(b []byte) { le.PutUint32(b[8:], 1<<32-1) }, block.ErrCorrupt},
		"8193 chunks":       {func(b []byte) { le.PutUint32(b[8:], 8193) }, block.ErrCorrupt},
		"3 chunks":          {func(b []byte) { le.PutUint32(b[8:], 3) }, block.ErrCorrupt},
		"raw 0":             {func(b []byte) { le.PutUint32(b[12:], 0) }, block.ErrCorrupt},
		"raw 2^32-1":        {func(b []byte) { le.PutUint32(b[12:], 1<<32-1) }, block.ErrCorrupt},
		"raw one less":      {func(b []byte) { le.PutUint32(b[12:], 9299) }, block.ErrCorrupt},
		"payload 0":         {func(b []byte) { le.PutUint32(b[16:], 0) }, block.ErrCorrupt},
		"payload 2^32-1":    {func(b []byte) { le.PutUint32(b[16:], 1<<32-1) }, block.ErrCorrupt},
		"payload > raw":     {func(b []byte) { le.PutUint32(b[16:], 9301) }, block.ErrCorrupt},
		"key id":            {func(b []byte) { b[28] = 1 }, keyring.ErrNoKey},
		"nonce":             {func(b []byte) { b[43] = 1 }, block.ErrCorrupt},
		"tag":               {func(b []byte) { b[59] = 1 }, block.ErrCorrupt},
		"chunk length":      {func(b []byte) { le.PutUint32(b[64+40:], 9001) }, block.ErrCorrupt},
		"empty chunk":       {func(b []byte) { le.PutUint32(b[64+40:], 0); le.PutUint32(b[64+48+40:], 9300) }, block.ErrCorrupt},
		"wrapping lengths":  {func(b []byte) { le.PutUint32(b[64+40:], 1<<32-1); le.PutUint32(b[64+48+40:], 9301) }, block.ErrCorrupt},
		"reserved in table": {func(b []byte) { b[64+47] = 1 }, block.ErrCorrupt},
		"payload not s2":    {func(b []byte) { clear(b[64+96:]) }, block.ErrCorrupt},
		"payload too long":  {func(b []byte) { copy(b[64+96:], []byte{0xff, 0xff, 0xff, 0xff, 0x0f}) }, block.ErrCorrupt},
	} {
		b := encode(t, segment.S2, chunk(1, textBytes(1, 9000)), chunk(2, textBytes(2, 300)))
		c.change(b)
		le.PutUint32(b[24:], crc32.Checksum(b[64:64+96], castagnoli))
		le.PutUint32(b[20:], crc32.Checksum(b[64+96:], castagnoli))
		resum(b, 0, 60)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f, err := segment.ParseFrame(b)
		if err == nil {
			_, err = f.Decode(nil, segment.NewDecoder())
		}
		runtime.ReadMemStats(&after)
		allocated := after.TotalAlloc - before.TotalAlloc
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if _, serr := segment.FrameSize(b[:64]); serr != nil && !errors.Is(serr, c.want) {
			t.Errorf("%s: size: %v", name, serr)
		}
		if name != "codec zstd" && allocated > 64<<10 {
			t.Errorf("%s: %d B allocated", name, allocated)
		}
	}
}

// A zstd payload that claims, or decodes to, more than the frame's raw length must not be followed there.
func TestDecompressionBomb(t *testing.T) {
	b := encode(t, segment.Zstd, chunk(1, make([]byte, segment.MaxFrameRaw)))
	le := binary.LittleEndian
	le.PutUint32(b[12:], 4096)
	le.PutUint32(b[64+40:], 4096)
	le.PutUint32(b[24:], crc32.Checksum(b[64:64+48], castagnoli))
	resum(b, 0, 60)
	f, err := segment.ParseFrame(b)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, 4096, 8192)
	if _, err := f.Decode(dst, segment.NewDecoder()); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("4 MiB in a frame of 4 KiB: %v", err)
	}
	if !bytes.Equal(dst[4096:8192], make([]byte, 4096)) {
		t.Error("wrote behind the raw length")
	}
}

func TestFramesDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools allocate; the plain run covers this")
	}
	for _, codec := range []segment.Codec{segment.None, segment.S2, segment.Zstd} {
		chunks := []segment.Chunk{chunk(1, textBytes(1, 9000)), chunk(2, textBytes(2, 9000))}
		enc, dec := segment.NewEncoder(), segment.NewDecoder()
		dst, raw, table := make([]byte, 0, 64<<10), make([]byte, 18000), make([]segment.FrameChunk, 0, 2)
		if n := testing.AllocsPerRun(50, func() {
			var err error
			if dst, err = segment.EncodeFrame(dst[:0], chunks, codec, enc); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations per EncodeFrame", codec, n)
		}
		if n := testing.AllocsPerRun(50, func() {
			f, err := segment.ParseFrame(dst)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = f.Decode(raw, dec); err != nil {
				t.Fatal(err)
			}
			table = f.Chunks(table[:0])
		}); n != 0 {
			t.Errorf("%v: %v allocations per Decode", codec, n)
		}
	}
}

func TestDecodeReusesMemory(t *testing.T) {
	b := encode(t, segment.None, chunk(1, textBytes(1, 1000)))
	f, err := segment.ParseFrame(b)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, 0, 4096)
	got, err := f.Decode(dst, segment.NewDecoder())
	if err != nil || &got[0] != &dst[:1][0] {
		t.Errorf("dst was not used: %v", err)
	}
	clear(b)
	if !bytes.Equal(got, textBytes(1, 1000)) {
		t.Error("the result lies in the frame")
	}
}

func TestFrameTakes(t *testing.T) {
	for _, c := range []struct {
		raw, next int
		want      bool
	}{{0, 64 << 10, true}, {4 << 10, 8 << 10, true}, {8 << 10, 16 << 10, true}, {8<<10 + 1, 16 << 10, false}, {16 << 10, 1, false}} {
		if got := segment.FrameTakes(segment.FrameRawTarget, c.raw, c.next); got != c.want {
			t.Errorf("%d + %d: %v", c.raw, c.next, got)
		}
	}
	// Whatever chunks come, a frame of the densest target holds no more than it may.
	rng := rand.New(rand.NewPCG(1, 2))
	raw := 0
	for range 100_000 {
		next := 1 + rng.IntN(1<<(8+rng.IntN(15)))
		if !segment.FrameTakes(segment.DenseFrameRawTarget, raw, next) {
			raw = 0
		}
		if raw += next; raw > segment.MaxFrameRaw {
			t.Fatalf("a frame of %d B, with a chunk of %d", raw, next)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	for _, codec := range []segment.Codec{segment.None, segment.S2, segment.Zstd} {
		chunks := []segment.Chunk{chunk(1, textBytes(1, 16<<10))}
		enc, dec := segment.NewEncoder(), segment.NewDecoder()
		var dst, raw []byte
		b.Run(fmt.Sprintf("encode/%v", codec), func(b *testing.B) {
			b.SetBytes(16 << 10)
			for b.Loop() {
				dst, _ = segment.EncodeFrame(dst[:0], chunks, codec, enc)
			}
		})
		b.Run(fmt.Sprintf("decode/%v", codec), func(b *testing.B) {
			b.SetBytes(16 << 10)
			for b.Loop() {
				f, err := segment.ParseFrame(dst)
				if err != nil {
					b.Fatal(err)
				}
				raw, _ = f.Decode(raw, dec)
			}
		})
	}
}

// TestEffort: the harder a frame was compressed the smaller it is, and any decoder reads it.
func TestEffort(t *testing.T) {
	raw := textBytes(3, 256<<10)
	last := len(raw)
	for _, effort := range []segment.Effort{segment.Low, segment.Normal, segment.High} {
		b, err := segment.EncodeFrame(nil, []segment.Chunk{chunk(1, raw)}, segment.Zstd, &segment.Encoder{Effort: effort})
		if err != nil {
			t.Fatal(err)
		}
		f, err := segment.ParseFrame(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Decode(make([]byte, len(raw)), segment.NewDecoder()); err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("effort %d: other data, error %v", effort, err)
		}
		if len(b) >= last {
			t.Errorf("effort %d: %d B, with less of it %d", effort, len(b), last)
		}
		last = len(b)
	}
}
