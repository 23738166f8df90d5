package transfer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// liveGolden is a stream of a live restore of 12,300 bytes, with a frame of each kind.
const liveGolden = "48564c4956450d0a01000000000000000c30000000000000000000003205b6e9010000000c00000000300000000000000c00000000000000d4499652a50e97c2656e64206f662069742e2e2e0200000000000000001000000000000000100000000000000000000072f87d59040000000700000000200000000000000010000000000000d02ec7845093344364616d61676564030000000000000000100000000000000000000000000000000000002fcef8a603000000000000000c30000000000000000000000000000000000000e5682fa4"

func liveStream(t *testing.T) []byte {
	t.Helper()
	var wire bytes.Buffer
	w, err := NewLiveWriter(&wire, 12300)
	for _, send := range []func() error{
		func() error { return w.Data(12288, []byte("end of it...")) },
		func() error { return w.Zero(4096, 4096) },
		func() error { return w.Failed(8192, 4096, "damaged") },
		func() error { return w.Reached(4096) },
		func() error { return w.Reached(12300) },
	} {
		if err == nil {
			err = send()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return wire.Bytes()
}

func TestLiveGolden(t *testing.T) {
	if got := hex.EncodeToString(liveStream(t)); got != liveGolden {
		t.Errorf("the stream is\n%s", got)
	}
	wire, err := hex.DecodeString(liveGolden)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewLiveReader(bytes.NewReader(wire))
	if err != nil || r.Size() != 12300 {
		t.Fatal(err)
	}
	for _, want := range []LiveFrame{
		{Kind: LiveData, Off: 12288, Length: 12, Data: []byte("end of it...")}, {Kind: LiveZero, Off: 4096, Length: 4096}, {Kind: LiveFailed, Off: 8192, Length: 4096, Message: "damaged"},
		{Kind: LiveReached, Off: 4096}, {Kind: LiveReached, Off: 12300},
	} {
		got, err := r.Next(func(n int) []byte { return make([]byte, n) })
		if err != nil || got.Kind != want.Kind || got.Off != want.Off || got.Length != want.Length || !bytes.Equal(got.Data, want.Data) || got.Message != want.Message {
			t.Errorf("a frame is %+v, %v; want %+v", got, err, want)
		}
	}
	if _, err := r.Next(nil); !errors.Is(err, ErrCut) {
		t.Errorf("the end of the stream: %v", err)
	}
}

// Every bit counts, and so does every cut.
func TestLiveDamage(t *testing.T) {
	whole := liveStream(t)
	drain := func(wire []byte) error {
		r, err := NewLiveReader(bytes.NewReader(wire))
		for err == nil {
			_, err = r.Next(func(n int) []byte { return make([]byte, n) })
		}
		return err
	}
	for at := range whole {
		bad := bytes.Clone(whole)
		bad[at] ^= 1 << (at % 8)
		if err := drain(bad); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("byte %d is flipped: %v", at, err)
		}
		if err := drain(whole[:at]); !errors.Is(err, ErrCut) {
			t.Errorf("cut after %d bytes: %v", at, err)
		}
	}
}

// Frames that make no sense are refused, and bounded before anything is allocated.
func TestLiveRefuses(t *testing.T) {
	for name, send := range map[string]func(w *LiveWriter) error{
		"data at half a block":   func(w *LiveWriter) error { return w.Data(512, make([]byte, 4096)) },
		"half a block of data":   func(w *LiveWriter) error { return w.Data(0, make([]byte, 512)) },
		"data behind the end":    func(w *LiveWriter) error { return w.Data(1<<30, make([]byte, 4096)) },
		"too much data":          func(w *LiveWriter) error { return w.Data(0, make([]byte, MaxPayload+4096)) },
		"no data":                func(w *LiveWriter) error { return w.Data(0, nil) },
		"too many zeroes":        func(w *LiveWriter) error { return w.Zero(0, MaxPayload+4096) },
		"a failure of nothing":   func(w *LiveWriter) error { return w.Failed(0, 0, "why") },
		"reached half a block":   func(w *LiveWriter) error { return w.Reached(512) },
		"reached behind the end": func(w *LiveWriter) error { return w.Reached(1<<30 + 4096) },
		"an unknown kind":        func(w *LiveWriter) error { return w.frame(9, 0, 0, nil) },
	} {
		var wire bytes.Buffer
		w, err := NewLiveWriter(&wire, 1<<30)
		if err == nil {
			err = send(w)
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewLiveReader(&wire)
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		if _, err := r.Next(func(n int) []byte { asked = n; return make([]byte, n) }); !errors.Is(err, block.ErrCorrupt) || asked > 0 {
			t.Errorf("%s: %v, and %d bytes were asked for", name, err, asked)
		}
	}
}
