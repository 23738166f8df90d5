package pack

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// testPack is a pack of 3 frames with 5 chunks each.
func testPack(t *testing.T) (keys *seal.Keys, whole []byte, raws [][]byte) {
	t.Helper()
	keys, err := seal.NewKeys(block.UUID{4, 5}, dedup.DomainKey{})
	if err != nil {
		t.Fatal(err)
	}
	session, err := keys.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	p, h := NewBuilder(keys, session), dedup.NewHasher(keys.Domain)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3 {
		var raw []byte
		var chunks []Chunk
		for range 5 {
			c := bytes.Repeat([]byte{byte(rng.Uint32()), byte(rng.Uint32()), 7}, 100+rng.IntN(3000))
			chunks = append(chunks, Chunk{ID: h.Sum(c), Raw: uint32(len(c))})
			raw = append(raw, c...)
		}
		if err := p.Add(chunks, Compress(nil, raw)); err != nil {
			t.Fatal(err)
		}
		raws = append(raws, raw)
	}
	whole, _ = p.Finish()
	return keys, whole, raws
}

// read reads a pack as a reader of the repository does.
func read(keys *seal.Keys, b []byte) (frames []Frame, raws [][]byte, err error) {
	h, err := DecodeHeader(b[:min(len(b), HeaderSize)], keys.Repository)
	if err != nil {
		return nil, nil, err
	}
	t, err := DecodeTrailer(b[max(0, len(b)-TrailerSize):], int64(len(b)))
	if err != nil {
		return nil, nil, err
	}
	end := len(b) - TrailerSize
	if frames, err = OpenDirectory(keys, h, t, b[end-int(t.DirectoryLen):end]); err != nil {
		return nil, nil, err
	}
	r, err := NewReader(keys, h)
	if err != nil {
		return frames, nil, err
	}
	hasher := dedup.NewHasher(keys.Domain)
	for i := range frames {
		f := &frames[i]
		raw, err := r.Open(f, i, b[f.Off:f.Off+f.Len])
		if err != nil {
			return frames, nil, err
		}
		off := uint32(0)
		for _, c := range f.Chunks {
			if err := Verify(hasher, c.ID, raw[off:off+c.Raw]); err != nil {
				return frames, nil, err
			}
			off += c.Raw
		}
		raws = append(raws, raw)
	}
	return frames, raws, nil
}

func TestRoundTrip(t *testing.T) {
	keys, whole, raws := testPack(t)
	_, got, err := read(keys, whole)
	if err != nil || !slices.EqualFunc(got, raws, bytes.Equal) {
		t.Fatalf("what is read differs from what was packed: %v", err)
	}
	frames, _, err := read(keys.Writer(), whole)
	if !errors.Is(err, seal.ErrReadKey) || len(frames) != 3 {
		t.Errorf("a writer reads %d frames of the directory and gets %v", len(frames), err)
	}
}

// Any bit of a pack that is wrong is noticed, and so is every length that it might have been cut to.
func TestDamage(t *testing.T) {
	keys, whole, _ := testPack(t)
	for i := 0; i < len(whole); i += 3 {
		bad := bytes.Clone(whole)
		bad[i] ^= 1 << (i % 8)
		if _, _, err := read(keys, bad); !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
			t.Fatalf("byte %d of %d flipped: got %v, want %v", i, len(whole), err, block.ErrCorrupt)
		}
	}
	for n := 0; n < len(whole); n += 7 {
		if _, _, err := read(keys, whole[:n]); !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("cut to %d of %d B: got %v, want %v", n, len(whole), err, block.ErrCorrupt)
		}
	}
}

func FuzzDirectory(f *testing.F) {
	f.Add(AppendDirectory(nil, []Frame{{Len: 100, Raw: 50, Chunks: []Chunk{{ID: block.Hash{1}, Raw: 50}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, rest, err := DecodeDirectory(b, headerSize)
		if err != nil {
			return
		}
		if again := append(AppendDirectory(nil, frames), rest...); !bytes.Equal(again, b) {
			t.Errorf("%x was decoded, and is %x when it is encoded again", b, again)
		}
	})
}
