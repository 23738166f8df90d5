package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// example is a stream with a piece of each kind, and what a reader should make of it.
func example(t *testing.T) (stream []byte, pieces []Piece) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 64<<10)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	pieces = []Piece{
		{Off: 512, Length: 4096, Data: bytes.Repeat([]byte("abcd"), 1024)},
		{Off: 8192, Length: 64 << 10, Data: random},
		{Off: 1 << 20, Length: 3 << 20},
		{Off: 5 << 20, Length: MaxPiece, Data: bytes.Repeat([]byte{9}, MaxPiece)},
	}
	var out bytes.Buffer
	w, err := NewWriter(&out, 8<<20)
	for _, p := range pieces {
		if p.Data == nil {
			err = errors.Join(err, w.Zero(p.Off, p.Length))
		} else {
			err = errors.Join(err, w.Data(p.Off, p.Data))
		}
	}
	if err := errors.Join(err, w.End()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), pieces
}

// read returns the pieces of a stream until it ends, or fails.
func read(stream []byte) (pieces []Piece, err error) {
	r, err := NewReader(bytes.NewReader(stream))
	if err != nil {
		return nil, err
	}
	for {
		p, err := r.Next()
		if err != nil {
			return pieces, err
		}
		p.Data = bytes.Clone(p.Data)
		pieces = append(pieces, p)
	}
}

func TestStream(t *testing.T) {
	stream, want := example(t)
	got, err := read(stream)
	if !errors.Is(err, io.EOF) || len(got) != len(want) {
		t.Fatalf("%d pieces, %v", len(got), err)
	}
	for i := range want {
		if got[i].Off != want[i].Off || got[i].Length != want[i].Length || !bytes.Equal(got[i].Data, want[i].Data) {
			t.Errorf("piece %d is %d B at %d", i, got[i].Length, got[i].Off)
		}
	}
	if len(stream) > 100<<10 {
		t.Errorf("1 MiB of one byte was not packed: %d B", len(stream))
	}
}

// Whatever is missing or changed is noticed: no stream looks complete that is not.
func TestStreamDamaged(t *testing.T) {
	stream, _ := example(t)
	for n := 0; n < len(stream); n += 1 + n/50 {
		if _, err := read(stream[:n]); !errors.Is(err, transfer.ErrCut) {
			t.Fatalf("cut after %d B: %v", n, err)
		}
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(stream)
			bad[n] ^= bit
			if _, err := read(bad); !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
				t.Fatalf("byte %d changed: %v", n, err)
			}
		}
	}
}

// Frames with right checksums and bounds that are wrong are refused before anything is allocated for them.
func TestStreamHostile(t *testing.T) {
	frame := func(kind, payload uint32, off, length uint64, body []byte) []byte {
		var b transfer.Header
		le := binary.LittleEndian
		le.PutUint32(b[0:], kind)
		le.PutUint32(b[4:], payload)
		le.PutUint64(b[8:], off)
		le.PutUint64(b[16:], length)
		le.PutUint32(b[24:], crc32.Checksum(body, castagnoli))
		b.Seal()
		return append(b[:], body...)
	}
	var head bytes.Buffer
	if _, err := NewWriter(&head, 8<<20); err != nil {
		t.Fatal(err)
	}
	for name, frames := range map[string][]byte{
		"beyond the end":        frame(kindZero, 0, 8<<20, 512, nil),
		"over the end":          frame(kindZero, 0, 4<<20, 1<<63, nil),
		"offset overflows":      frame(kindZero, 0, 1<<63, 1<<63, nil),
		"a large payload":       frame(kindData, 1<<31, 0, 1<<31, nil),
		"payload of a zero":     frame(kindZero, 4, 0, 512, []byte("abcd")),
		"data of no length":     frame(kindData, 0, 0, 0, nil),
		"not whole sectors":     frame(kindData, 4, 0, 4, []byte("abcd")),
		"packed to a bomb":      frame(kindPacked, 8, 0, 512, []byte("\xff\xff\xff\xff\x0f123")),
		"packed to other":       frame(kindPacked, 4, 0, 1024, []byte("\x05abc")),
		"a long message":        frame(kindFailed, 1<<20, 0, 0, nil),
		"unknown":               frame(77, 0, 0, 0, nil),
		"an end before the end": frame(kindEnd, 0, 512, 0, nil),
		"back":                  append(frame(kindZero, 0, 4096, 4096, nil), frame(kindZero, 0, 4096, 512, nil)...),
	} {
		if _, err := read(append(bytes.Clone(head.Bytes()), frames...)); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var remote *transfer.RemoteError
	if _, err := read(append(bytes.Clone(head.Bytes()), frame(kindFailed, 4, 0, 0, []byte("oops"))...)); !errors.As(err, &remote) || remote.Message != "oops" {
		t.Errorf("a failure of the source: %v", err)
	}
}

func TestTarget(t *testing.T) {
	for text, want := range map[string]string{
		"hvd://host/web1":                       "hvd://host:8082/web1",
		"hvd://[::1]:9000/web1":                 "hvd://[::1]:9000/web1",
		"hvd+unix:///web1?socket=/run/hvd.sock": "hvd+unix:///web1?socket=%2Frun%2Fhvd.sock",
		"hvd://host/@shop":                      "hvd://host:8082/@shop",
		"hvd+unix:///@shop?socket=/s":           "hvd+unix:///@shop?socket=%2Fs",
	} {
		got, err := ParseTarget(text)
		if err != nil || got.String() != want {
			t.Errorf("%s is %s, %v", text, got, err)
		}
		if again, err := ParseTarget(got.String()); err != nil || again != got {
			t.Errorf("%s is not read again: %v", got, err)
		}
	}
	for _, text := range []string{"", "web1", "hvd:///web1", "hvd://host", "hvd://host/", "hvd://host/a/b", "hvd://host/@", "hvd://host/@a/b", "http://host/web1", "hvd://u:p@host/web1", "hvd://host/web1?x=1", "hvd+unix:///web1", "hvd+unix:///web1?socket=rel", "hvd://host:x/v"} {
		if got, err := ParseTarget(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
}

func TestBegin(t *testing.T) {
	want := Begin{Pair: "abcdefghijklmnopqrstuvwxyz", Epoch: 7, Point: "bbcdefghijklmnopqrstuvwxyz", Base: Empty, FromBytes: 1 << 40, At: time.Unix(1, 2).UTC(), Group: "gbcdefghijklmnopqrstuvwxyz"}
	if got, err := ParseBegin(want.Point, want.query()); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, key := range []string{"pair", "epoch", "base", "from", "at", "group"} {
		query := want.query()
		query.Set(key, "../x")
		if _, err := ParseBegin(want.Point, query); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("a bad %s: %v", key, err)
		}
	}
}
