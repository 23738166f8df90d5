package backup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// rot changes bytes of an object where the storage has them, each so many, as its disk may: locks do not keep that from happening.
func (v *vault) rot(key string, each int) {
	v.t.Helper()
	path := filepath.Join(v.g.Root, v.g.Bucket, "r", key)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		v.t.Fatal(err)
	}
	b := make([]byte, 40)
	for off := int64(each); off < info.Size()*3/4; off += int64(each) {
		if _, err := f.ReadAt(b, off); err != nil {
			v.t.Fatal(err)
		}
		spoil(b)
		if _, err := f.WriteAt(b, off); err != nil {
			v.t.Fatal(err)
		}
	}
}

// largest returns the largest of some objects.
func (v *vault) largest(keys []string) (key string) {
	v.t.Helper()
	most := int64(-1)
	for _, k := range keys {
		o, err := v.in.Stat(v.t.Context(), k)
		if err != nil {
			v.t.Fatal(err)
		}
		if o.SizeBytes > most {
			key, most = k, o.SizeBytes
		}
	}
	return key
}

// unlockedBackups returns what a verification says of locks, and fails for anything else that it says.
func (v *vault) unlockedBackups() (names []string) {
	v.t.Helper()
	_, err := Verify(v.t.Context(), v.open(), Verification{Problem: func(what string, err error) {
		if names = append(names, strings.TrimPrefix(what, "backup ")); !errors.Is(err, repository.ErrUnlocked) {
			v.t.Errorf("%s: %v", what, err)
		}
	}})
	if err != nil {
		v.t.Fatal(err)
	}
	return names
}

// lockedPair is a vault with a backup that is locked and an increment of it that is locked for longer, another repository that has copies, and what they are of.
func lockedPair(t *testing.T) (v *vault, other *place, old, now *repository.Manifest, was, is content) {
	t.Helper()
	v, other = newVault(t), newPlace(t)
	was = noise(1, RegionSize+2<<20)
	old = v.locked(was, time.Hour)
	is = bytes.Clone(was)
	copy(is[RegionSize:], noise(2, 300_000))
	changes := NewChanges()
	changes.Add(RegionSize, 300_000)
	now = v.manifest(3 * time.Hour)
	if err := RunIncremental(t.Context(), v.open(), is, old, changes, now, nil); err != nil {
		t.Fatal(err)
	}
	copyAll(t, v.place, other)
	return v, other, old, now, was, is
}

// What a repair stores anew of locked backups is locked as long as the last of those that need it, also of those that share it with a damaged one: whoever deletes all that can be deleted does not undo the repair. A backup that later relies on the locks of its parent can.
func TestRepairLocksWhatItMends(t *testing.T) {
	v, other, old, now, was, is := lockedPair(t)
	before := v.keys("packs/")
	v.rot(v.largest(before), 300_000)
	source := []RepairFrom{{Name: "other", Repository: other.open()}}
	plan, err := Repair(t.Context(), v.openDamaged(), Repairing{From: source, DryRun: true})
	if err != nil || plan.LockedObjects != 0 || len(v.keys("packs/")) != len(before) {
		t.Fatalf("a dry run does %+v, %v", plan, err)
	}
	got := v.repairDamaged(Repairing{From: source})
	if got.Lost() || len(got.Mended) == 0 || got.UnlockedObjects == 0 || got.LockedObjects <= got.UnlockedObjects {
		t.Fatalf("it did %+v", got)
	}
	if names := v.unlockedBackups(); len(names) > 0 {
		t.Errorf("not locked: %v", names)
	}
	for _, key := range v.keys("packs/") {
		if until, err := v.locks.LockedUntil(t.Context(), key); !slices.Contains(before, key) && (err != nil || until.Before(now.PacksLockedUntil)) {
			t.Errorf("%s, of the repair, is locked until %v, %v; what the last backup needs is until %v", key, until, err, now.PacksLockedUntil)
		}
	}
	if again := v.repair(Repairing{}); again.LockedObjects+again.UnlockedObjects != 0 {
		t.Errorf("another repair does %+v", again)
	}
	later := append(is, noise(3, 100_000)...)
	changes := NewChanges()
	changes.Add(uint64(len(is)), 100_000)
	m := v.manifest(3*time.Hour + 10*time.Minute)
	if err := RunIncremental(t.Context(), v.open(), later, now, changes, m, nil); err != nil {
		t.Fatal(err)
	}
	if names := v.unlockedBackups(); len(names) > 0 || !m.PacksLockedUntil.Equal(now.PacksLockedUntil) {
		t.Errorf("not locked: %v; what a later backup needs is said to be until %v, and of its parent until %v", names, m.PacksLockedUntil, now.PacksLockedUntil)
	}
	v.destroy()
	v.uncover()
	for _, b := range []struct {
		m    *repository.Manifest
		data content
	}{{old, was}, {now, is}, {m, later}} {
		sameContent(t, v.open(), b.m, b.data)
	}
}

// A chunk that is damaged in a locked pack and whole in another is there, and may be deleted: that is found and locked.
func TestRepairLocksOtherPlaces(t *testing.T) {
	v := newVault(t)
	data := content(noise(4, 3<<20))
	first, second := v.open(), v.open() // neither knows what the other stores
	m := v.manifest(time.Hour)
	if err := Run(t.Context(), first, data, m, nil); err != nil {
		t.Fatal(err)
	}
	locked := v.keys("packs/")
	data.whole(t, second)
	if len(v.keys("packs/")) == len(locked) {
		t.Fatal("nothing lies in two packs")
	}
	if names := v.unlockedBackups(); len(names) > 0 {
		t.Errorf("all is in a locked pack, and a verification says of %v that it is not", names)
	}
	v.rot(v.largest(locked), 100_000)
	if got := v.repairDamaged(Repairing{}); got.Lost() || len(got.Mended) != 0 || got.UnlockedObjects != 1 || got.LockedObjects != 2 {
		t.Errorf("it did %+v", got)
	}
	if names := v.unlockedBackups(); len(names) > 0 {
		t.Errorf("not locked: %v", names)
	}
	v.destroy()
	v.uncover()
	sameContent(t, v.open(), m, data)
}

// Whatever keeps a repair from locking, or kills it while it does: what it mended is there, a verification says of which backups something is not locked, and the next repair locks it.
func TestRepairDiesLocking(t *testing.T) {
	v, other, old, now, was, is := lockedPair(t)
	v.rot(v.largest(v.keys("packs/")), 2_000_000)
	source := []RepairFrom{{Name: "other", Repository: other.open()}}
	dead := errors.New("dead")
	for at, done := 1, false; !done; at++ {
		calls := 0
		v.locks.fail = func(string, int) error { // one object after the other is locked, at the end of these tests' repairs: there are few
			if calls++; calls >= at {
				return dead
			}
			return nil
		}
		got, err := Repair(t.Context(), v.openDamaged(), Repairing{From: source})
		v.locks.fail = nil
		if done = err == nil; err != nil && !(errors.Is(err, dead) && errors.Is(err, repository.ErrUnlocked)) || got.Lost() {
			t.Fatalf("lock %d: %+v, %v", at, got, err)
		}
		if names := v.unlockedBackups(); done != (len(names) == 0) {
			t.Errorf("lock %d: the repair ends with %v, and of %v something is not locked", at, err, names)
		}
		sameContent(t, v.open(), old, was)
		sameContent(t, v.open(), now, is)
		if at > 20 {
			t.Fatal("it never ends")
		}
	}
	v.destroy()
	v.uncover()
	sameContent(t, v.open(), old, was)
	sameContent(t, v.open(), now, is)
}

// A repair that dies at any of its changes leaves nothing unlocked that the next one does not lock.
func TestRepairOfLockedDies(t *testing.T) {
	v, other, old, now, was, is := lockedPair(t)
	packs := v.keys("packs/")
	v.rot(v.largest(packs), 2_000_000)
	source := []RepairFrom{{Name: "other", Repository: other.open()}}
	for at := 1; ; at++ {
		f := &backendtest.Faulty{At: at, Applied: at%2 == 0, Dead: true}
		v.wrap = func(b backend.Backend) backend.Backend { f.Backend = b; return faultyLocker{f} }
		_, err := Repair(t.Context(), v.openDamaged(), Repairing{From: source})
		v.wrap = nil
		if f.Reached() != (err != nil) {
			t.Fatalf("change %d: %v", at, err)
		}
		if err == nil {
			break
		}
		if at > 20 {
			t.Fatal("it never ends")
		}
	}
	if names := v.unlockedBackups(); len(names) > 0 {
		t.Errorf("not locked: %v", names)
	}
	v.destroy()
	v.uncover()
	sameContent(t, v.open(), old, was)
	sameContent(t, v.open(), now, is)
}

// faultyLocker is a faulty place whose objects can be locked.
type faultyLocker struct{ *backendtest.Faulty }

// Unwrap returns what locks.
func (f faultyLocker) Unwrap() backend.Backend { return f.Backend }

// The object of a backup that is stored again, as it was or made of a copy, is locked as the one was that cannot be read.
func TestRepairLocksManifests(t *testing.T) {
	v, other, old, now, was, is := lockedPair(t)
	flip := func(m *repository.Manifest, each int) {
		path := filepath.Join(v.g.Root, v.g.Bucket, "r", "manifests", m.Name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for off := len(b) - 20; off > len(b)-20-each; off-- {
			b[off] ^= 4
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(b, 0)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	flip(old, 1)  // is corrected
	flip(now, 40) // is copied
	got := v.repairDamaged(Repairing{From: []RepairFrom{{Name: "other", Repository: other.open()}}})
	if got.Lost() || len(got.Manifests) != 2 {
		t.Fatalf("it did %+v", got)
	}
	for _, x := range got.Manifests {
		want, data := old, was
		if x.Name == now.Name {
			want, data = now, is
		}
		m, err := v.open().Manifest(t.Context(), x.As)
		if err != nil || m.LockedUntil.Before(want.LockedUntil) {
			t.Fatalf("%+v is locked until %v, and was until %v: %v", x, m, want.LockedUntil, err)
		}
		if until, err := v.locks.LockedUntil(t.Context(), "manifests/"+x.As); err != nil || until.Before(want.LockedUntil) {
			t.Errorf("%+v: its object is locked until %v, and was until %v: %v", x, until, want.LockedUntil, err)
		}
		defer func() { sameContent(t, v.open(), m, data) }()
	}
	v.destroy()
	v.uncover()
}

// A backup whose program died before it locked the manifest is found and locked; a bucket that was copied has no locks, and nothing is said of it or locked there.
func TestVerifyFindsBareManifests(t *testing.T) {
	v, copied := newVault(t), emptyVault(t)
	data := content(noise(5, 1<<20))
	v.locks.fail = func(key string, _ int) error {
		if strings.HasPrefix(key, "manifests/") {
			return context.Canceled
		}
		return nil
	}
	stays := &v.place.wrap
	*stays = func(b backend.Backend) backend.Backend { return undeletable{b} } // as it does when nobody is there to take it back
	m := v.manifest(time.Hour)
	if err := Run(t.Context(), v.open(), data, m, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	*stays, v.locks.fail = nil, nil
	for _, key := range v.keys("") {
		o, err := v.in.Stat(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, o.SizeBytes)
		if err := errors.Join(v.in.ReadAt(t.Context(), key, b, 0), copied.in.Create(t.Context(), key, b)); err != nil {
			t.Fatal(err)
		}
	}
	copied.id = v.id
	if names := v.unlockedBackups(); len(names) != 1 || names[0] != m.Name {
		t.Errorf("the manifest of %s is not locked, and a verification says that of %v", m.Name, names)
	}
	if got := v.repair(Repairing{}); got.UnlockedObjects != 1 || got.LockedObjects != 1 {
		t.Errorf("it did %+v", got)
	}
	if names := v.unlockedBackups(); len(names) > 0 {
		t.Errorf("not locked: %v", names)
	}
	if names := copied.unlockedBackups(); len(names) > 0 {
		t.Errorf("of a copied bucket: %v", names)
	}
	if got := copied.repair(Repairing{}); got.Found() || got.LockedObjects != 0 {
		t.Errorf("of a copied bucket: %+v", got)
	}
	v.destroy()
	v.uncover()
	sameContent(t, v.open(), m, data)
}

// undeletable is a place where nothing can be deleted, and objects be locked.
type undeletable struct{ backend.Backend }

// Unwrap returns what locks.
func (u undeletable) Unwrap() backend.Backend { return u.Backend }

// Delete implements backend.Backend.
func (u undeletable) Delete(context.Context, string) error { return block.ErrInUse }
