package blockstore

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/check"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// plainMark is text that no file of an encrypted store may have.
const plainMark = "the guest's very own words; "

func atRestOptions(t *testing.T) Options {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.Keys = fixedKeys()
	return opts
}

// findPlain fails if a file of the store has plainMark.
func findPlain(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(plainMark)) {
			t.Errorf("%s has plain text", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func closeTest(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEncryptedStore(t *testing.T) {
	opts := atRestOptions(t)
	s := openTest(t, opts)
	d := createTest(t, s, "a", 32<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	text := bytes.Repeat([]byte(plainMark), 1<<20/len(plainMark)+1)[:1<<20]
	noise := guestData(rng, 1<<20)
	copy(noise, plainMark)
	writeTest(t, d, 0, text)
	writeTest(t, d, 1<<20, noise)
	settleTest(t, s)
	writeTest(t, d, 2<<20, text) // a duplicate, which stays in the log
	verify := func(s *Store) {
		t.Helper()
		d := deviceTest(t, s, "a", "")
		expect(t, d, 0, text)
		expect(t, d, 1<<20, noise)
		expect(t, d, 2<<20, text)
	}
	verify(s)
	findPlain(t, opts.Dir)
	closeTest(t, s)
	findPlain(t, opts.Dir)
	checkWhole(t, opts.Dir, "closed")

	// A rotation writes no data, and is used by what comes after it.
	if err := EditKeys(opts.Dir, opts.Keys.Identities, false, func(f *keyring.File, r *keyring.Ring) error { return errors.Join(r.Rotate(), f.Rewrap(r)) }); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	verify(s)
	writeTest(t, deviceTest(t, s, "a", ""), 3<<20, noise)
	settleTest(t, s)
	verify(s)
	if got := s.keys.ring.Current(); got != 2 {
		t.Errorf("new data is sealed under key %d, want 2", got)
	}
	closeTest(t, s)

	// Metadata that is lost is made anew from what is sealed.
	if err := os.RemoveAll(filepath.Join(opts.Dir, metaDir)); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	verify(s)
	closeTest(t, s)
	findPlain(t, opts.Dir)
	rep, err := check.Run(t.Context(), opts.Dir, check.Options{})
	if err != nil || !rep.OK() || rep.Warnings == 0 {
		t.Errorf("check: %v, %d errors, %d warnings", err, rep.Errors, rep.Warnings)
	}
}

func TestEncryptedStoreNeedsItsKey(t *testing.T) {
	opts := atRestOptions(t)
	closeTest(t, openTest(t, opts))
	before, err := readSuper(vfs.Default, opts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, keys Keys, want error) {
		t.Helper()
		o := opts
		o.Keys = keys
		if s, err := Open(context.Background(), o); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
			if err == nil {
				_ = s.Close()
			}
		}
	}
	refused("no key", Keys{}, keyring.ErrNoKey)
	refused("another key", Keys{Identities: []age.Identity{other}}, keyring.ErrWrongKey)
	if after, err := readSuper(vfs.Default, opts.Dir); err != nil || *after != *before {
		t.Errorf("a start that was refused has changed the store: %+v, %v", after, err)
	}

	// The other key is added, the first taken away.
	mine, err := secret.Recipients(opts.Keys.Identities)
	if err != nil {
		t.Fatal(err)
	}
	theirs := other.Recipient().String()
	edit := func(id age.Identity, change func(*keyring.File, *keyring.Ring) error) error {
		return EditKeys(opts.Dir, []age.Identity{id}, false, change)
	}
	if err := edit(opts.Keys.Identities[0], func(f *keyring.File, r *keyring.Ring) error {
		return f.Add(r, theirs, "safe", opts.withDefaults().Now())
	}); err != nil {
		t.Fatal(err)
	}
	if err := edit(other, func(f *keyring.File, _ *keyring.Ring) error { return f.Remove(mine[0]) }); err != nil {
		t.Fatal(err)
	}
	if err := edit(other, func(f *keyring.File, _ *keyring.Ring) error { return f.Remove(theirs) }); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("the last key: got %v, want %v", err, block.ErrInvalid)
	}
	refused("a key that was taken away", opts.Keys, keyring.ErrWrongKey)
	opts.Keys = Keys{Identities: []age.Identity{other}}
	closeTest(t, openTest(t, opts))

	// A byte of the file of keys.
	path := filepath.Join(opts.Dir, keysFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("damaged keys", opts.Keys, block.ErrCorrupt)
}

func TestKeyForAPlainStore(t *testing.T) {
	opts := atRestOptions(t)
	opts.Keys = Keys{}
	closeTest(t, openTest(t, opts))
	opts.Keys = fixedKeys()
	if _, err := Open(context.Background(), opts); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("got %v, want %v", err, block.ErrInvalid)
	}
}
