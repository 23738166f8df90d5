package blockstore

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/check"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
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
	if err := EditKeys(opts.Dir, nil, opts.Keys.Identities, false, func(f *keyring.File, r *keyring.Ring) error { return errors.Join(r.Rotate(), f.Rewrap(r)) }); err != nil {
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
	rep, err = check.Run(t.Context(), opts.Dir, check.Options{Unwrap: func(sealed []byte) ([]byte, error) { return secret.Unwrap(sealed, 1<<20, opts.Keys.Identities...) }})
	if err != nil || rep.Errors+rep.Warnings != 0 { // under both master keys
		t.Errorf("check with the key: %v, %v", err, rep.Findings)
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
		return EditKeys(opts.Dir, nil, []age.Identity{id}, false, change)
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

// A segment can go between the read of a frame and the look for its key: its chunks have moved, and it must be neither damage nor leave a wrong key behind.
func TestFrameOfASegmentThatIsGone(t *testing.T) {
	ring, err := keyring.New(block.UUID{1})
	if err != nil {
		t.Fatal(err)
	}
	generation := uint32(0)
	k := &frameKeys{ring: ring, generation: func(block.SegmentID) uint32 { return generation }}
	sink, err := os.Create(filepath.Join(t.TempDir(), "segment"))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	key, err := k.writing(7, 1)
	if err != nil {
		t.Fatal(err)
	}
	w, err := segment.NewSealedWriter(sink, segment.Meta{ID: 7, Generation: 1, Class: segment.Warm}, key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := segment.EncodeFrame(nil, []segment.Chunk{{ID: 1, Raw: []byte(plainMark)}}, segment.None, segment.NewEncoder())
	if err != nil {
		t.Fatal(err)
	}
	off, err := w.Append(b)
	if err := errors.Join(err, w.Flush()); err != nil {
		t.Fatal(err)
	}
	if _, err := sink.ReadAt(b, int64(off)); err != nil {
		t.Fatal(err)
	}
	open := func() error {
		f, err := segment.ParseFrame(b)
		if err != nil {
			t.Fatal(err)
		}
		return k.open(&f, 7, 0, off, segment.NewDecoder())
	}
	if err := open(); !errors.Is(err, block.ErrNotFound) || errors.Is(err, block.ErrCorrupt) {
		t.Errorf("no row: got %v, want %v", err, block.ErrNotFound)
	}
	generation = 1
	if err := open(); err != nil {
		t.Errorf("with its row: %v", err)
	}
}

// The disk with the newest superblock is what a lost data directory is made from, so one that did not take the keys must not have it.
func TestADiskHasTheKeysBeforeTheSuperblock(t *testing.T) {
	disk := t.TempDir()
	inTheWay := filepath.Join(disk, keysFile+".tmp") // a folder that is not empty: no file takes its place
	for _, dir := range []string{filepath.Join(disk, "log"), filepath.Join(inTheWay, "x")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(disk, "log", "members"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	super := &superblock{StoreID: block.UUID{1}, Generation: 4, BootEpoch: 2, Incompat: incompatEncrypted}
	reports := 0
	s := &Store{fs: vfs.Default, super: super, keyBytes: []byte("keys")}
	s.opts = Options{Dir: t.TempDir(), Disks: []string{disk}, Events: Events{BackgroundError: func(_ string, err error) {
		if err != nil {
			reports++
		}
	}}}
	s.copySuper(super)
	if _, err := readSuper(vfs.Default, disk); !errors.Is(err, block.ErrNotFound) || reports != 1 {
		t.Errorf("a disk that took no keys: superblock %v, %d reports", err, reports)
	}
	if err := os.RemoveAll(inTheWay); err != nil {
		t.Fatal(err)
	}
	s.copySuper(super)
	b, err := os.ReadFile(filepath.Join(disk, keysFile))
	if got, e := readSuper(vfs.Default, disk); err != nil || string(b) != "keys" || e != nil || got.Generation != 4 {
		t.Errorf("keys %q, %v; superblock %+v, %v", b, err, got, e)
	}
}

// A change of keys is on the further disks that are named at once, on others with the next start, and never on a disk of another store.
func TestKeysChangeOnAllDisks(t *testing.T) {
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{Data: 3, Parity: 1})
	opts.Keys = fixedKeys()
	closeTest(t, openTest(t, opts))
	closeTest(t, openTest(t, opts)) // by now the disks have copies
	read := func(dir string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, keysFile))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := read(opts.Dir)
	for _, d := range opts.Disks {
		if read(d) != before {
			t.Fatalf("%s has other keys than the data directory", d)
		}
	}
	stranger := atRestOptions(t)
	closeTest(t, openTest(t, stranger))
	strange := read(stranger.Dir)
	rotate := func(f *keyring.File, r *keyring.Ring) error { return errors.Join(r.Rotate(), f.Rewrap(r)) }
	err := EditKeys(opts.Dir, []string{opts.Disks[0], stranger.Dir, opts.Disks[1]}, opts.Keys.Identities, false, rotate)
	if !errors.Is(err, block.ErrInvalid) || strings.Count(err.Error(), "is not, and follows") != 1 {
		t.Errorf("a disk of another store: %v", err)
	}
	after := read(opts.Dir)
	if after == before || read(opts.Disks[0]) != after || read(opts.Disks[1]) != after {
		t.Error("the disks that were named do not have the new keys")
	}
	if read(opts.Disks[2]) != before || read(stranger.Dir) != strange {
		t.Error("disks that were not meant have other keys")
	}
	closeTest(t, openTest(t, opts))
	if read(opts.Disks[2]) != after {
		t.Error("the next start does not bring the keys up to date")
	}
}
