package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// disk is n bytes of which much is zero.
func disk(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	p := make([]byte, n)
	for at := 0; at < n; at += 1 << 17 {
		_, _ = r.Read(p[at:min(n, at+70_000)])
	}
	return p
}

// streamOf is content as a stream; a size of transfer.UnknownSize is possible.
func streamOf(t *testing.T, content []byte, size uint64) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := transfer.NewWriter(&out, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := transfer.SendStream(t.Context(), w, bytes.NewReader(content), size, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// exported is the content of a volume or snapshot, or parts of it, by way of a stream.
func exported(t *testing.T, c *Control, volume, snapshot string, parts ...block.Range) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := c.Export(t.Context(), volume, snapshot, parts, &out); err != nil {
		t.Fatal(err)
	}
	r, err := transfer.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, r.Size())
	for {
		piece, err := r.Next(func(n int) []byte { return make([]byte, n) })
		if errors.Is(err, io.EOF) {
			return content
		}
		if err != nil {
			t.Fatal(err)
		}
		copy(content[piece.Off:], piece.Data)
	}
}

func TestImportAndExport(t *testing.T) {
	engine := newFakeEngine()
	c, _ := start(t, testConfig(t), engine)
	content := disk(5<<20 + 700)
	for name, size := range map[string]uint64{"known": uint64(len(content)), "unknown": transfer.UnknownSize} {
		v, err := c.Import(t.Context(), ImportSpec{Name: name}, bytes.NewReader(streamOf(t, content, size)))
		if err != nil {
			t.Fatal(err)
		}
		if want := roundUp(uint64(len(content))); v.SizeBytes != want || v.Name != name {
			t.Errorf("got %+v, want size %d", v, want)
		}
		if got := exported(t, c, name, ""); !bytes.Equal(got[:len(content)], content) {
			t.Errorf("%s: content differs", name)
		}
	}
	if _, err := c.CreateSnapshot(t.Context(), "known", "s"); err != nil {
		t.Fatal(err)
	}
	if got := exported(t, c, "known", "s"); !bytes.Equal(got[:len(content)], content) {
		t.Error("snapshot: content differs")
	}
	if n := len(engine.volumes["known"].snapshots); n != 1 {
		t.Errorf("%d snapshots after the exports, want the user's one", n)
	}
	var parts []block.Range
	var want []byte
	rng := rand.New(rand.NewPCG(1, 1))
	for range 300 { // in any order, and more than once
		off := rng.IntN(len(content) - 1)
		r := block.Range{Off: uint64(off), Len: uint64(1 + rng.IntN(min(90_000, len(content)-off)))}
		parts, want = append(parts, r), append(want, content[off:off+int(r.Len)]...)
	}
	if got := exported(t, c, "known", "s", parts...); !bytes.Equal(got, want) {
		t.Error("parts: content differs")
	}
	if err := c.Export(t.Context(), "known", "", parts, io.Discard); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("parts of what changes: %v", err)
	}
	size := roundUp(uint64(len(content)))
	for _, bad := range []block.Range{{Off: size, Len: 1}, {Off: size - 1, Len: 2}, {Off: 1 << 63, Len: 1 << 63}, {Len: 0}, {Off: 1, Len: ^uint64(0)}} {
		if err := c.Export(t.Context(), "known", "s", []block.Range{{Len: 512}, bad}, io.Discard); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// An import fails at any point of its stream, and by its device: nothing of it may stay.
func TestFailedImportLeavesNothing(t *testing.T) {
	engine := newFakeEngine()
	c, _ := start(t, testConfig(t), engine)
	content := disk(1 << 20)
	whole := streamOf(t, content, uint64(len(content)))
	for _, n := range []int{0, 1, 31, 32, 33, 64, 70, len(whole) / 2, len(whole) - 33, len(whole) - 32, len(whole) - 1} {
		_, err := c.Import(t.Context(), ImportSpec{Name: "v"}, bytes.NewReader(whole[:n]))
		if !errors.Is(err, transfer.ErrCut) {
			t.Errorf("cut at %d of %d: %v", n, len(whole), err)
		}
	}
	for _, at := range []int{0, 9, 20, 30, 35, 45, 55, 62, 5000} {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x40
		if _, err := c.Import(t.Context(), ImportSpec{Name: "v"}, bytes.NewReader(bad)); !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
			t.Errorf("bit flipped at %d: %v", at, err)
		}
	}
	engine.writeErr = block.ErrNoSpace
	if _, err := c.Import(t.Context(), ImportSpec{Name: "v"}, bytes.NewReader(whole)); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("full store: %v", err)
	}
	engine.writeErr = nil
	if _, err := c.Import(t.Context(), ImportSpec{Name: "v"}, bytes.NewReader(streamOf(t, nil, transfer.UnknownSize))); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("empty: %v", err)
	}
	if len(engine.volumes) != 0 {
		t.Errorf("left: %v", engine.volumes)
	}
	if _, err := c.Import(t.Context(), ImportSpec{Name: "v"}, bytes.NewReader(whole)); err != nil {
		t.Errorf("the name is not free again: %v", err)
	}
	if _, err := c.Import(t.Context(), ImportSpec{Name: "v"}, bytes.NewReader(whole)); !errors.Is(err, block.ErrExists) {
		t.Errorf("import over a volume: %v", err)
	}
}

func TestKeepPartial(t *testing.T) {
	c, _ := start(t, testConfig(t), newFakeEngine())
	content := disk(3 << 20)
	whole := streamOf(t, content, transfer.UnknownSize)
	_, err := c.Import(t.Context(), ImportSpec{Name: "v", KeepPartial: true}, bytes.NewReader(whole[:len(whole)-40]))
	if !errors.Is(err, transfer.ErrCut) || !strings.Contains(err.Error(), "are kept") {
		t.Fatalf("got %v", err)
	}
	got := exported(t, c, "v", "")
	if len(got) == 0 || len(got) >= len(content) || !bytes.Equal(got, content[:len(got)]) {
		t.Errorf("%d bytes are kept, and they may differ", len(got))
	}
}

func TestImportHoldsItsName(t *testing.T) {
	c, _ := start(t, testConfig(t), newFakeEngine())
	r, w := io.Pipe()
	result := make(chan error)
	go func() {
		_, err := c.Import(context.Background(), ImportSpec{Name: "v"}, r)
		result <- err
	}()
	if _, err := transfer.NewWriter(w, 1<<20); err != nil { // the import has read it when this returns
		t.Fatal(err)
	}
	if _, err := c.CreateVolume(t.Context(), VolumeSpec{Name: "v", SizeBytes: 512}); !errors.Is(err, block.ErrInUse) {
		t.Errorf("create: %v", err)
	}
	if list := c.Volumes(); len(list) != 0 {
		t.Errorf("an unfinished import is visible: %+v", list)
	}
	w.Close()
	if err := <-result; !errors.Is(err, transfer.ErrCut) {
		t.Errorf("import: %v", err)
	}
}

// What the death of the process left is gone after the next start.
func TestLeftoversAreRemoved(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	c, stop := start(t, cfg, engine)
	newVolume(t, c, "v")
	newVolume(t, c, "w")
	stop()
	if err := engine.RenameVolume(t.Context(), "w", importPrefix+"x"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mine", exportPrefix + "x", ".clone-x"} {
		if _, err := engine.CreateSnapshot(t.Context(), "v", name); err != nil {
			t.Fatal(err)
		}
	}
	start(t, cfg, engine)
	if len(engine.volumes) != 1 || len(engine.volumes["v"].snapshots) != 1 {
		t.Errorf("volumes %v, snapshots %v", engine.volumes, engine.volumes["v"].snapshots)
	}
}
