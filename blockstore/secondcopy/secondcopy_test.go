package secondcopy_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/secondcopy"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

var update = flag.Bool("update", false, "write the golden bytes anew")

var store = block.UUID{15: 7}

// sample writes a file of three frames, the second of which cannot be read, and returns its bytes.
func sample(t *testing.T) (*vfs.MemFS, []byte) {
	t.Helper()
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll("d", 0o700); err != nil {
		t.Fatal(err)
	}
	places := []secondcopy.Place{{Segment: 2, Generation: 1, Off: 4096, Len: 5}, {Segment: 2, Generation: 1, Off: 9000, Len: 4}, {Segment: 9, Generation: 3, Off: 100, Len: 3}}
	err := secondcopy.Write(context.Background(), fs, "d", store, places, func(_ context.Context, p secondcopy.Place) ([]byte, bool, error) {
		return bytes.Repeat([]byte{byte(p.Segment)}, int(p.Len)), p.Off != 9000, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := fs.Open("d/" + secondcopy.FileName)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, info.Size())
	if err := vfs.ReadFull(f, b, 0); err != nil {
		t.Fatal(err)
	}
	return fs, b
}

func TestGolden(t *testing.T) {
	_, b := sample(t)
	const name = "testdata/copies.golden"
	if *update {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("the format has changed:\n% x\nwant\n% x", b, want)
	}
}

func TestReadBack(t *testing.T) {
	fs, _ := sample(t)
	f, err := secondcopy.Open(fs, "d", store)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.Places()); n != 2 {
		t.Errorf("%d frames", n)
	}
	p := secondcopy.Place{Segment: 9, Generation: 3, Off: 100, Len: 3}
	b := make([]byte, 3)
	if !f.Has(p) || !f.Read(b, p) || !bytes.Equal(b, []byte{9, 9, 9}) {
		t.Errorf("read % x", b)
	}
	for _, other := range []secondcopy.Place{{9, 2, 100, 3}, {9, 3, 101, 3}, {9, 3, 100, 4}, {2, 1, 9000, 4}} {
		if f.Has(other) || f.Read(make([]byte, other.Len), other) {
			t.Errorf("there is a copy of %+v", other)
		}
	}
	if of := f.Of(2, 1); len(of) != 1 || of[0].Off != 4096 {
		t.Errorf("of segment 2: %+v", of)
	}
	if len(f.Of(2, 2)) > 0 || len(f.Of(3, 1)) > 0 {
		t.Error("copies of segments that have none")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f.Read(b, p) {
		t.Error("read from a closed file")
	}
}

// TestDamage changes and cuts the file everywhere: it is refused, or the frame is, and nothing wrong is ever given out.
func TestDamage(t *testing.T) {
	_, good := sample(t)
	judge := func(what string, b []byte) {
		fs := vfs.NewCrashableMem()
		_ = fs.MkdirAll("d", 0o700)
		w, err := vfs.Create(fs, "d/"+secondcopy.FileName)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		f, err := secondcopy.Open(fs, "d", store)
		if err != nil {
			if !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
				t.Errorf("%s: %v", what, err)
			}
			return
		}
		defer f.Close()
		for _, p := range f.Places() {
			got := make([]byte, p.Len)
			if f.Read(got, p) && !bytes.Equal(got, bytes.Repeat([]byte{byte(p.Segment)}, int(p.Len))) {
				t.Errorf("%s: wrong bytes of %+v", what, p)
			}
		}
	}
	for i := range good {
		for _, flip := range []byte{1, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= flip
			judge("a flipped bit", b)
		}
		judge("a cut file", good[:i])
	}
	judge("a longer file", append(bytes.Clone(good), 0))
	if _, err := secondcopy.Open(vfs.NewCrashableMem(), "d", store); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
	fs, _ := sample(t)
	if _, err := secondcopy.Open(fs, "d", block.UUID{1}); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("the file of another store: %v", err)
	}
}
