package tierstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// Suite says how to test one kind of backend.
type Suite struct {
	// New returns an empty backend that lives until the test ends.
	New func(t *testing.T) tiers.Backend
	// Crash, if the kind can simulate a power loss, returns what one leaves of b: all that was synced, and as little else as possible.
	Crash func(t *testing.T, b tiers.Backend) tiers.Backend
	// NoUpdate says that the kind cannot overwrite.
	NoUpdate bool
}

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	for _, c := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"AppendAndRead", s.appendAndRead},
		{"ReadWhileGrowing", s.readWhileGrowing},
		{"ReadPastTheEnd", s.readPastTheEnd},
		{"CreateTwice", s.createTwice},
		{"Missing", s.missing},
		{"BadKeys", s.badKeys},
		{"DeleteWhileOpen", s.deleteWhileOpen},
		{"List", s.list},
		{"Update", s.update},
		{"Capacity", s.capacity},
		{"Concurrent", s.concurrent},
		{"SyncedSurvivesPowerLoss", s.powerLoss},
	} {
		t.Run(c.name, c.f)
	}
}

// key returns the n-th key of a test.
func key(n int) string { return tiers.SegmentKey(block.SegmentID(n), uint32(n)%3) }

// pattern is n bytes that depend on seed.
func pattern(seed, n int) []byte {
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	p := make([]byte, n)
	src.Read(p)
	return p
}

// write creates a segment with the given pieces, syncs and closes it.
func write(t *testing.T, b tiers.Backend, key string, pieces ...[]byte) {
	t.Helper()
	w, err := b.Create(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pieces {
		appendPiece(t, w, p)
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func appendPiece(t *testing.T, w tiers.Writer, p []byte) {
	t.Helper()
	if n, err := w.Write(bytes.Clone(p)); err != nil || n != len(p) { // Write may change what it is given
		t.Fatalf("write of %d B: %d, %v", len(p), n, err)
	}
}

// expect opens a segment and compares all of it.
func expect(t *testing.T, b tiers.Backend, key string, want []byte) {
	t.Helper()
	r, err := b.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	expectReader(t, r, want)
}

func expectReader(t *testing.T, r tiers.Reader, want []byte) {
	t.Helper()
	if n, err := r.Size(); err != nil || n != int64(len(want)) {
		t.Fatalf("size %d, %v; want %d", n, err, len(want))
	}
	got := make([]byte, len(want))
	if n, err := r.ReadAt(got, 0); n != len(want) || err != nil && err != io.EOF {
		t.Fatalf("read %d of %d B: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("other bytes than were written")
	}
	clear(got)
	switch err := r.TryReadAt(got, 0); {
	case errors.Is(err, block.ErrWouldBlock):
	case err != nil:
		t.Fatalf("try read: %v", err)
	case !bytes.Equal(got, want):
		t.Fatal("other bytes from a read that does not wait")
	}
}

func (s Suite) appendAndRead(t *testing.T) {
	b := s.New(t)
	pieces := [][]byte{pattern(1, 4096), pattern(2, 1), pattern(3, 1<<20), pattern(4, 777)}
	write(t, b, key(1), pieces...)
	expect(t, b, key(1), bytes.Join(pieces, nil))
	write(t, b, key(2))
	expect(t, b, key(2), nil)
}

func (s Suite) readWhileGrowing(t *testing.T) {
	b := s.New(t)
	w, err := b.Create(key(1))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r, err := b.Open(key(1))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []byte
	for i := range 10 {
		p := pattern(i, 1000+i)
		appendPiece(t, w, p)
		all = append(all, p...)
		if i%3 == 0 {
			if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
			expectReader(t, r, all)
		}
	}
}

func (s Suite) readPastTheEnd(t *testing.T) {
	b := s.New(t)
	write(t, b, key(1), pattern(1, 100))
	r, err := b.Open(key(1))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := make([]byte, 100)
	if n, err := r.ReadAt(p, 60); n != 40 || err != io.EOF {
		t.Errorf("read across the end: %d, %v; want 40, EOF", n, err)
	}
	if n, err := r.ReadAt(p, 1000); n != 0 || err != io.EOF {
		t.Errorf("read behind the end: %d, %v; want 0, EOF", n, err)
	}
	if err := r.TryReadAt(p, 60); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, block.ErrWouldBlock) {
		t.Errorf("try read across the end: %v", err)
	}
}

func (s Suite) createTwice(t *testing.T) {
	b := s.New(t)
	write(t, b, key(1), pattern(1, 100))
	if w, err := b.Create(key(1)); !errors.Is(err, block.ErrExists) {
		t.Errorf("second create: %v, %v", w, err)
	}
	expect(t, b, key(1), pattern(1, 100))
}

func (s Suite) missing(t *testing.T) {
	b := s.New(t)
	if _, err := b.Open(key(1)); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("open: %v", err)
	}
	if _, err := b.Update(key(1)); !errors.Is(err, block.ErrNotFound) && !s.NoUpdate {
		t.Errorf("update: %v", err)
	}
	if err := b.Delete(key(1)); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := b.Open(key(1)); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("open after the other calls: %v", err)
	}
}

func (s Suite) badKeys(t *testing.T) {
	b := s.New(t)
	good := key(1)
	for _, k := range []string{"", ".", "..", "x", "../" + good, "/" + good, good + "\x00", good + "/..", good[:28], "G" + good[1:]} {
		if _, err := b.Create(k); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("create %q: %v", k, err)
		}
		if _, err := b.Open(k); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("open %q: %v", k, err)
		}
		if _, err := b.Update(k); !errors.Is(err, block.ErrInvalid) && !s.NoUpdate {
			t.Errorf("update %q: %v", k, err)
		}
		if err := b.Delete(k); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("delete %q: %v", k, err)
		}
	}
}

func (s Suite) deleteWhileOpen(t *testing.T) {
	b := s.New(t)
	want := pattern(1, 100000)
	write(t, b, key(1), want)
	r, err := b.Open(key(1))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := b.Delete(key(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(key(1)); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("open after delete: %v", err)
	}
	expectReader(t, r, want)
}

func (s Suite) list(t *testing.T) {
	b := s.New(t)
	want := map[string]int64{}
	for i := 1; i <= 300; i++ {
		write(t, b, key(i), pattern(i, i))
		want[key(i)] = int64(i)
	}
	for i := 1; i <= 300; i += 7 {
		if err := b.Delete(key(i)); err != nil {
			t.Fatal(err)
		}
		delete(want, key(i))
	}
	if err := b.List(func(k string, n int64) error {
		if w, ok := want[k]; !ok || w != n {
			t.Errorf("lists %s with %d B; want %d, %v", k, n, w, ok)
		}
		delete(want, k)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(want) > 0 {
		t.Errorf("does not list %v", want)
	}
	stop := errors.New("stop")
	if err := b.List(func(string, int64) error { return stop }); err != stop {
		t.Errorf("list that was stopped: %v", err)
	}
}

func (s Suite) update(t *testing.T) {
	b := s.New(t)
	write(t, b, key(1), pattern(1, 1000))
	u, err := b.Update(key(1))
	if s.NoUpdate {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("update: %v, want errors.ErrUnsupported", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if n, err := u.Size(); n != 1000 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	tail := pattern(2, 500)
	if n, err := u.WriteAt(bytes.Clone(tail), 900); n != 500 || err != nil {
		t.Fatalf("write at: %d, %v", n, err)
	}
	if err := errors.Join(u.Sync(), u.Close()); err != nil {
		t.Fatal(err)
	}
	expect(t, b, key(1), append(pattern(1, 1000)[:900], tail...))
}

func (s Suite) capacity(t *testing.T) {
	c, err := s.New(t).Capacity()
	if errors.Is(err, errors.ErrUnsupported) {
		return
	}
	if err != nil || c.TotalBytes <= 0 || c.FreeBytes < 0 || c.FreeBytes > c.TotalBytes {
		t.Errorf("%+v, %v", c, err)
	}
}

func (s Suite) concurrent(t *testing.T) {
	b := s.New(t)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 20 {
				n := g*1000 + i + 1
				if err := oneLife(b, key(n), pattern(n, 5000)); err != nil {
					t.Errorf("segment %d: %v", n, err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			if err := errors.Join(b.List(func(string, int64) error { return nil }), b.Sync()); err != nil {
				t.Errorf("list and sync: %v", err)
			}
		}
	})
	wg.Wait()
}

// oneLife creates, reads and deletes a segment.
func oneLife(b tiers.Backend, key string, data []byte) error {
	w, err := b.Create(key)
	if err != nil {
		return err
	}
	_, werr := w.Write(bytes.Clone(data))
	if err := errors.Join(werr, w.Sync(), w.Close()); err != nil {
		return err
	}
	r, err := b.Open(key)
	if err != nil {
		return err
	}
	got := make([]byte, len(data))
	if _, err := r.ReadAt(got, 0); err != nil && err != io.EOF {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("other bytes than were written")
	}
	return errors.Join(b.Delete(key), r.Close())
}

func (s Suite) powerLoss(t *testing.T) {
	if s.Crash == nil {
		t.Skip("this kind cannot lose power in a test")
	}
	b := s.New(t)
	write(t, b, key(1), pattern(1, 70000))
	w, err := b.Create(key(2)) // in a folder of its own, and still open at the end
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	appendPiece(t, w, pattern(2, 5000))
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	appendPiece(t, w, pattern(3, 5000)) // not synced
	write(t, b, key(3), pattern(4, 100))
	if err := errors.Join(b.Delete(key(3)), b.Sync()); err != nil {
		t.Fatal(err)
	}

	b = s.Crash(t, b)
	expect(t, b, key(1), pattern(1, 70000))
	r, err := b.Open(key(2))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, 5000)
	if n, err := r.ReadAt(got, 0); n != 5000 || !bytes.Equal(got, pattern(2, 5000)) {
		t.Errorf("synced bytes of an open segment: %d, %v", n, err)
	}
	if _, err := b.Open(key(3)); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a deletion that was synced: %v", err)
	}
}
