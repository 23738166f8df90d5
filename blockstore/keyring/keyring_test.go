package keyring

import (
	"errors"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
)

var testStore = block.UUID{1, 2, 3}

// testFile returns a ring, wrapped for an identity of either kind.
func testFile(t *testing.T) (*Ring, *File, *age.X25519Identity, *age.HybridIdentity) {
	t.Helper()
	ring, err := New(testStore)
	if err != nil {
		t.Fatal(err)
	}
	classic, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	f := NewFile(ring)
	for _, r := range []string{classic.Recipient().String(), hybrid.Recipient().String()} {
		if err := f.Add(ring, r, "label", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	return ring, f, classic, hybrid
}

func TestEachIdentityOpensTheFile(t *testing.T) {
	ring, f, classic, hybrid := testFile(t)
	if err := errors.Join(ring.Rotate(), f.Rewrap(ring)); err != nil {
		t.Fatal(err)
	}
	b, err := f.Encode(ring)
	if err != nil {
		t.Fatal(err)
	}
	read, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	want, err := ring.Log(2)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []age.Identity{classic, hybrid} {
		got, err := read.Open(testStore, []age.Identity{id})
		if err != nil {
			t.Fatal(err)
		}
		if key, err := got.Log(2); err != nil || key != want || got.Domain != ring.Domain || got.Current() != 2 {
			t.Errorf("%T: another ring, %v", id, err)
		}
	}
	if _, err := ring.Log(3); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a key that is not there: %v", err)
	}
	if _, err := read.Open(block.UUID{9}, []age.Identity{classic}); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("another store: %v", err)
	}
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read.Open(testStore, []age.Identity{stranger}); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := read.Open(testStore, nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("no key: %v", err)
	}
}

// Keys of one id differ by purpose, by id and by store.
func TestDerivedKeysDiffer(t *testing.T) {
	ring, _, _, _ := testFile(t)
	if err := ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	other := *ring
	other.Store = block.UUID{7}
	seen := map[string]bool{}
	for _, r := range []*Ring{ring, &other} {
		for id := range uint32(2) {
			log, err1 := r.Log(id + 1)
			seg, err2 := r.Segment(id + 1)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			seen[string(log.Bytes())], seen[string(seg.Bytes())] = true, true
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d different keys of 8", len(seen))
	}
}

// Who may write the file and has no key cannot have the next rotation wrap the ring for him.
func TestSlotsAreAuthenticated(t *testing.T) {
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(f *File){
		"a slot's recipient is another": func(f *File) { f.Slots[1].Recipient = stranger.Recipient().String() },
		"a slot more": func(f *File) {
			f.Slots = append(f.Slots, Slot{Recipient: stranger.Recipient().String(), Added: f.Slots[0].Added, Sealed: f.Slots[0].Sealed})
		},
		"a slot less":   func(f *File) { f.Slots = f.Slots[:1] },
		"another label": func(f *File) { f.Slots[0].Label = "other" },
		"another time":  func(f *File) { f.Slots[0].Added = f.Slots[0].Added.Add(time.Second) },
		"no tag":        func(f *File) { f.MAC = nil },
		"no recipient":  func(f *File) { f.Slots[1].Recipient = "" },
	} {
		ring, f, classic, _ := testFile(t)
		b, err := f.Encode(ring)
		if err != nil {
			t.Fatal(err)
		}
		read, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := read.Open(testStore, []age.Identity{classic}); err != nil {
			t.Fatal(err)
		}
		change(read)
		if _, err := read.Open(testStore, []age.Identity{classic}); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: got %v, want %v", what, err, block.ErrCorrupt)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("hyper-nixos keys 1 00000000\n{}\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Decode(b)
		if err != nil {
			if !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
				t.Errorf("error %v is of no kind", err)
			}
			return
		}
		if len(file.Slots) == 0 || len(file.Slots) > MaxSlots {
			t.Errorf("%d slots", len(file.Slots))
		}
	})
}

// Each flipped bit of the file is noticed.
func TestDamagedFile(t *testing.T) {
	ring, f, classic, _ := testFile(t)
	good, err := f.Encode(ring)
	if err != nil {
		t.Fatal(err)
	}
	for at := range good {
		b := append([]byte(nil), good...)
		b[at] ^= 1
		if file, err := Decode(b); err == nil {
			if _, err := file.Open(testStore, []age.Identity{classic}); err == nil {
				t.Fatalf("a flip at %d is not noticed", at)
			}
		}
	}
}
