package segment_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

func frameKeyOf(t *testing.T, ring *keyring.Ring, id block.SegmentID, generation uint32) *segment.Key {
	t.Helper()
	key, err := segment.NewKey(ring, 1, id, generation)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// memorySink is a segment in memory.
type memorySink struct{ bytes.Buffer }

func (*memorySink) Sync() error { return nil }

// A sealed frame opens at its own place only, and each byte of it counts, checksums in order or not.
func TestSealedFrames(t *testing.T) {
	ring, err := keyring.New(testMeta.StoreID)
	if err != nil {
		t.Fatal(err)
	}
	key := frameKeyOf(t, ring, testMeta.ID, testMeta.Generation)
	var sink memorySink
	meta := testMeta
	w, err := segment.NewSealedWriter(&sink, meta, key)
	if err != nil {
		t.Fatal(err)
	}
	raw := bytes.Repeat([]byte("plain text "), 500)
	var offs []uint32
	for i := range 2 {
		b, err := segment.EncodeFrame(nil, []segment.Chunk{{ID: block.ChunkID(i + 1), Raw: raw}}, segment.S2, segment.NewEncoder())
		if err != nil {
			t.Fatal(err)
		}
		off, err := w.Append(b)
		if err != nil {
			t.Fatal(err)
		}
		offs = append(offs, off)
	}
	if _, err := w.Seal(1); err != nil {
		t.Fatal(err)
	}
	b := sink.Bytes()
	if bytes.Contains(b, []byte("plain text")) {
		t.Error("the segment has plain text")
	}
	if _, err := segment.Check(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Errorf("check without the key: %v", err)
	}
	open := func(at, as uint32, key *segment.Key) ([]byte, error) {
		dec := segment.NewDecoder()
		f, err := segment.ParseFrame(b[at:])
		if err == nil {
			err = f.Open(key, as, dec)
		}
		if err != nil {
			return nil, err
		}
		return f.Decode(nil, dec)
	}
	for _, off := range offs {
		if got, err := open(off, off, key); err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("frame at %d: %v", off, err)
		}
	}
	for what, try := range map[string]func() ([]byte, error){
		"in the place of another frame": func() ([]byte, error) { return open(offs[0], offs[1], key) },
		"of another segment": func() ([]byte, error) {
			return open(offs[0], offs[0], frameKeyOf(t, ring, testMeta.ID+1, testMeta.Generation))
		},
		"of another generation": func() ([]byte, error) {
			return open(offs[0], offs[0], frameKeyOf(t, ring, testMeta.ID, testMeta.Generation+1))
		},
	} {
		if _, err := try(); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("a frame %s: got %v, want %v", what, err, block.ErrCorrupt)
		}
	}
	f, err := segment.ParseFrame(b[offs[0]:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Decode(nil, segment.NewDecoder()); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("decoded without a key: %v", err)
	}
}
