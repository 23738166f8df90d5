package transfer

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// memory is a source and a target in memory.
type memory struct {
	mu      sync.Mutex
	content []byte
	written int   // bytes
	err     error // of reads and writes beyond failAt
	failAt  uint64
}

func (m *memory) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if m.err != nil && off+uint64(len(p)) > m.failAt {
		return holes, m.err
	}
	copy(p, m.content[off:])
	return holes, nil
}

func (m *memory) Write(_ context.Context, batch []block.Write) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range batch {
		if m.err != nil && w.Off+uint64(len(w.Data)) > m.failAt {
			return m.err
		}
		m.written += len(w.Data)
		copy(m.content[w.Off:], w.Data)
	}
	return nil
}

// content is n bytes in runs of data and zeroes, at offsets that fit no unit.
func content(seed byte, n int) []byte {
	source := rand.NewChaCha8([32]byte{seed})
	r := rand.New(source)
	p := make([]byte, n)
	for at := 0; at < n; {
		run := 1 + r.IntN(200_000)
		if r.IntN(2) == 0 {
			_, _ = source.Read(p[at:min(n, at+run)])
		}
		at += run
	}
	return p
}

func TestRoundTrip(t *testing.T) {
	for seed, n := range []int{1, 511, 4096, 65536, 1 << 20, 9<<20 + 12345} {
		want := content(byte(seed), n)
		for name, send := range map[string]func(w *Writer) error{
			"source": func(w *Writer) error { return Send(t.Context(), w, &memory{content: want}, uint64(n), nil) },
			"stream": func(w *Writer) error { return SendStream(t.Context(), w, bytes.NewReader(want), uint64(n), nil) },
		} {
			var wire bytes.Buffer
			w, err := NewWriter(&wire, uint64(n))
			if err != nil {
				t.Fatal(err)
			}
			if err := send(w); err != nil {
				t.Fatal(err)
			}
			r, err := NewReader(&wire)
			if err != nil {
				t.Fatal(err)
			}
			got := &memory{content: make([]byte, n)}
			size, err := Receive(t.Context(), r, Target{Write: got.Write}, nil)
			if err != nil || size != uint64(n) || !bytes.Equal(got.content, want) {
				t.Errorf("%s of %d: size %d, %v, equal %v", name, n, size, err, bytes.Equal(got.content, want))
			}
			if wire.Len() > 0 {
				t.Errorf("%s of %d: %d bytes of the stream are left", name, n, wire.Len())
			}
		}
	}
}

// sparse knows that only the blocks at 0 and at 1 TiB hold data.
type sparse struct{ reads *int }

const farData = 1 << 40

func (s sparse) NextData(off uint64) (uint64, error) {
	switch {
	case off == 0:
		return 0, nil
	case off <= farData:
		return farData, nil
	}
	return 1 << 50, nil
}

func (s sparse) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	*s.reads++
	clear(p)
	p[0] = 1
	return holes, nil
}

// Two terabytes of hole cost two reads, four frames and no writes.
func TestHolesCostNothing(t *testing.T) {
	var wire bytes.Buffer
	reads := 0
	w, err := NewWriter(&wire, 2<<40)
	if err != nil {
		t.Fatal(err)
	}
	if err := Send(t.Context(), w, onlyOne{sparse{&reads}, &sync.Mutex{}}, 2<<40, nil); err != nil {
		t.Fatal(err)
	}
	if reads != 2 || wire.Len() > HeaderSize*6+2*holeUnit {
		t.Errorf("%d reads, %d bytes", reads, wire.Len())
	}
	r, err := NewReader(&wire)
	if err != nil {
		t.Fatal(err)
	}
	writes := map[uint64]int{}
	var mu sync.Mutex
	size, err := Receive(t.Context(), r, Target{Write: func(_ context.Context, batch []block.Write) error {
		mu.Lock()
		defer mu.Unlock()
		for _, b := range batch {
			writes[b.Off] += len(b.Data)
		}
		return nil
	}}, nil)
	if err != nil || size != 2<<40 || len(writes) != 2 || writes[0] != block.Size || writes[farData] != block.Size {
		t.Errorf("size %d, %v, writes %v", size, err, writes)
	}
}

// onlyOne lets one read in at a time.
type onlyOne struct {
	sparse
	mu *sync.Mutex
}

func (o onlyOne) ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sparse.ReadAt(ctx, p, off, holes)
}

func TestFaultsOnBothSides(t *testing.T) {
	fault := errors.New("medium error")
	n := uint64(8 << 20)
	full := bytes.Repeat([]byte{7}, int(n))
	w, err := NewWriter(io.Discard, n)
	if err != nil {
		t.Fatal(err)
	}
	if err := Send(t.Context(), w, &memory{content: full, err: fault, failAt: 3 << 20}, n, nil); !errors.Is(err, fault) {
		t.Errorf("send: %v", err)
	}
	var wire bytes.Buffer
	if w, err = NewWriter(&wire, n); err != nil {
		t.Fatal(err)
	}
	if err := Send(t.Context(), w, &memory{content: full}, n, nil); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(&wire)
	if err != nil {
		t.Fatal(err)
	}
	target := &memory{content: make([]byte, n), err: fault, failAt: 3 << 20}
	if _, err := Receive(t.Context(), r, Target{Write: target.Write}, nil); !errors.Is(err, fault) {
		t.Errorf("receive: %v", err)
	}
}

func TestSenderReportsItsFailure(t *testing.T) {
	var wire bytes.Buffer
	w, err := NewWriter(&wire, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Data([]byte("some")), w.Fail("disk on fire")); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(&wire)
	if err != nil {
		t.Fatal(err)
	}
	var remote *RemoteError
	_, err = Receive(t.Context(), r, Target{Write: func(context.Context, []block.Write) error { return nil }}, nil)
	if !errors.As(err, &remote) || remote.Message != "disk on fire" {
		t.Errorf("got %v", err)
	}
}

func TestStreamOfTheWrongLength(t *testing.T) {
	for input, want := range map[string]error{"short": ErrCut, "much too long": block.ErrInvalid} {
		w, err := NewWriter(io.Discard, 8)
		if err != nil {
			t.Fatal(err)
		}
		if err := SendStream(t.Context(), w, bytes.NewReader([]byte(input)), 8, nil); !errors.Is(err, want) {
			t.Errorf("%q: %v", input, err)
		}
	}
}

// Golden bytes: this stream must stay readable for ever.
const golden = "485653545245414d0100000000000000031000000000000000000000dbd8f668" +
	"02000000000000000000000000000000001000000000000000000000991a9eeb" +
	"010000000300000000100000000000000300000000000000b73f4b3688e89197" +
	"616263" +
	"03000000000000000310000000000000000000000000000000000000e8d63cff"

func TestGoldenStream(t *testing.T) {
	var wire bytes.Buffer
	w, err := NewWriter(&wire, 4096+3)
	if err != nil {
		t.Fatal(err)
	}
	w.Hole(4096)
	if err := errors.Join(w.Data([]byte("abc")), w.End()); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(wire.Bytes()); got != golden {
		t.Errorf("got  %s\nwant %s", got, golden)
	}
}

// FuzzReader feeds the reader what it likes: it must end, lend bounded buffers and never panic.
func FuzzReader(f *testing.F) {
	var wire bytes.Buffer
	w, err := NewWriter(&wire, 4096+3)
	if err != nil {
		f.Fatal(err)
	}
	w.Hole(4096)
	if err := errors.Join(w.Data([]byte("abc")), w.End()); err != nil {
		f.Fatal(err)
	}
	f.Add(wire.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		r, err := NewReader(bytes.NewReader(stream))
		for next := uint64(0); err == nil; {
			var piece Piece
			piece, err = r.Next(func(n int) []byte {
				if n <= 0 || n > MaxPayload {
					t.Fatalf("lend %d", n)
				}
				return make([]byte, n)
			})
			if err == nil && piece.Off != next {
				t.Fatalf("piece at %d, want %d", piece.Off, next)
			}
			next = piece.Off + piece.Length
		}
	})
}
