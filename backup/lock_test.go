package backup

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// vault is a repository in a bucket with object lock.
type vault struct {
	*place
	g     *s3test.Gateway
	locks *lockCounter
}

// lockCounter counts who is asked to be locked, and may fail, or not know of locks.
type lockCounter struct {
	*s3.S3
	fail  func(key string, times int) error // of Lock, nil: never
	blind bool                              // LockedUntil tells of none
	can   error                             // what CanLock says

	mu struct {
		sync.Mutex
		asked map[string]int
	}
}

func (c *lockCounter) CanLock(ctx context.Context) error {
	if c.can != nil {
		return c.can
	}
	return c.S3.CanLock(ctx)
}

func (c *lockCounter) LockedUntil(ctx context.Context, key string) (time.Time, error) {
	if c.blind {
		return time.Time{}, nil
	}
	return c.S3.LockedUntil(ctx, key)
}

func (c *lockCounter) Lock(ctx context.Context, key string, until time.Time, spare time.Duration) (time.Time, error) {
	c.mu.Lock()
	c.mu.asked[key]++
	times := c.mu.asked[key]
	c.mu.Unlock()
	if c.fail != nil {
		if err := c.fail(key, times); err != nil {
			return time.Time{}, err
		}
	}
	return c.S3.Lock(ctx, key, until, spare)
}

// packs returns how many of some packs were asked for since the last call.
func (c *lockCounter) packs(of []string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range of {
		n += min(1, c.mu.asked[key])
	}
	c.mu.asked = make(map[string]int)
	return n
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := emptyVault(t)
	if _, err := repository.Init(t.Context(), v.in, cdc.Default(), v.slot); err != nil {
		t.Fatal(err)
	}
	return v
}

// emptyVault is a bucket with object lock, for a repository.
func emptyVault(t *testing.T) *vault {
	t.Helper()
	g := s3test.StartLocking(t)
	b, err := s3.Create(t.Context(), s3.Options{Place: s3.Place{Host: g.Host, Bucket: g.Bucket, Prefix: "r/"}, Region: "us-east-1", Credentials: credentials.NewStaticV4(g.Access, g.Secret, "")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	c := &lockCounter{S3: b}
	c.packs(nil)
	return &vault{&place{t: t, in: c, id: id}, g, c}
}

// locked backs up content and locks it for so long.
func (v *vault) locked(c content, d time.Duration) *repository.Manifest {
	v.t.Helper()
	m := v.manifest(d)
	if err := Run(v.t.Context(), v.open(), c, m, nil); err != nil {
		v.t.Fatal(err)
	}
	return m
}

func (v *vault) manifest(d time.Duration) *repository.Manifest {
	return &repository.Manifest{Source: repository.Source{Kind: "volume", Name: "v"}, Consistency: "crash", LockedUntil: time.Now().Add(d).UTC().Truncate(time.Second)}
}

// keys returns the keys of all objects below a prefix.
func (v *vault) keys(prefix string) (keys []string) {
	v.t.Helper()
	if err := v.in.List(v.t.Context(), prefix, func(o backend.Object) error { keys = append(keys, o.Key); return nil }); err != nil {
		v.t.Fatal(err)
	}
	slices.Sort(keys)
	return keys
}

// destroy does what whoever has all keys of the storage can: it deletes each version of each object, or tries to, and then marks all objects as deleted.
func (v *vault) destroy() {
	v.t.Helper()
	ctx, c := v.t.Context(), v.g.Client(v.t)
	keys := make(map[string]bool)
	for info := range c.ListObjects(ctx, v.g.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		if info.Err != nil {
			v.t.Fatal(info.Err)
		}
		keys[info.Key] = true
		_ = c.RemoveObject(ctx, v.g.Bucket, info.Key, minio.RemoveObjectOptions{VersionID: info.VersionID, GovernanceBypass: true}) // refused for what is locked
	}
	for key := range keys {
		_ = c.RemoveObject(ctx, v.g.Bucket, key, minio.RemoveObjectOptions{})
	}
}

// uncover brings back what was hidden, and returns how much that was.
func (v *vault) uncover() int {
	v.t.Helper()
	all, err := repository.Hidden(v.t.Context(), v.in)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, h := range all {
		if err := repository.Uncover(v.t.Context(), v.in, h); err != nil {
			v.t.Fatal(err)
		}
	}
	return len(all)
}

// Backups that are locked outlive whoever has the keys of the storage: packs of older backups that they need are locked as well, and asked for only when their locks do not last.
func TestLockedBackups(t *testing.T) {
	v := newVault(t)
	ctx := t.Context()
	parent := v.locked(noise(1, 3*RegionSize), time.Hour)
	if parent.PacksLockedUntil.Before(parent.LockedUntil.Add(14 * time.Minute)) {
		t.Errorf("locked until %v, and what it needs until %v", parent.LockedUntil, parent.PacksLockedUntil)
	}
	first := v.keys("packs/")
	if got := v.locks.packs(first); got != len(first) || got < 3 {
		t.Fatalf("%d packs were locked, there are %d", got, len(first))
	}
	unlocked := content(noise(2, 1<<20)).whole(t, v.open())
	now := content(noise(1, 3*RegionSize))
	for _, c := range []struct {
		lock time.Duration
		all  bool // its parent's locks are too short
	}{{time.Hour + 5*time.Minute, false}, {time.Hour + 10*time.Minute, false}, {2 * time.Hour, true}, {2*time.Hour + 10*time.Minute, false}} {
		from := uint64(len(now))
		now = append(now, noise(from, 300_000)...)
		changes := NewChanges()
		changes.Add(from, uint64(len(now))-from)
		m := v.manifest(c.lock)
		if err := RunIncremental(ctx, v.open(), now, parent, changes, m, nil); err != nil {
			t.Fatal(err)
		}
		if got := v.locks.packs(first); got != map[bool]int{true: len(first), false: 0}[c.all] {
			t.Errorf("a lock of %v, after one until %v: %d of the %d packs of the first backup were asked for", c.lock, parent.PacksLockedUntil, got, len(first))
		}
		if m.PacksLockedUntil.Before(m.LockedUntil) || m.Parent != parent.Name {
			t.Errorf("locked until %v, and what it needs until %v", m.LockedUntil, m.PacksLockedUntil)
		}
		parent = m
	}
	full := v.locked(now, 2*time.Hour+20*time.Minute)
	if got := v.locks.packs(first); got != 0 || full.PacksLockedUntil.Before(full.LockedUntil) {
		t.Errorf("a backup that reads everything, with a parent locked until %v: %d of the first packs were asked for, locked until %v", parent.PacksLockedUntil, got, full.PacksLockedUntil)
	}
	parent = full
	v.destroy()
	if n := v.uncover(); n <= len(first) {
		t.Errorf("%d objects were brought back", n)
	}
	sameContent(t, v.open(), parent, now)
	sound(t, v.open(), 6)
	if _, err := v.open().Manifest(ctx, unlocked.Name); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("the backup that was not locked: %v", err)
	}
	for _, key := range v.keys("packs/") {
		if until, err := v.locks.LockedUntil(ctx, key); err != nil || until.Before(parent.LockedUntil) {
			t.Errorf("%s is locked until %v, %v", key, until, err)
		}
	}
}

// A bucket that was copied has the manifests that say what is locked, and no locks: nobody relies on those.
func TestLocksOfACopiedBucket(t *testing.T) {
	v, other := newVault(t), emptyVault(t)
	ctx := t.Context()
	data := content(noise(1, 2*RegionSize))
	parent := v.locked(data, time.Hour)
	for _, key := range v.keys("") {
		o, err := v.in.Stat(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, o.SizeBytes)
		if err := errors.Join(v.in.ReadAt(ctx, key, b, 0), other.in.Create(ctx, key, b)); err != nil {
			t.Fatal(err)
		}
	}
	other.id = v.id
	now := append(data, noise(2, 100_000)...)
	changes := NewChanges()
	changes.Add(uint64(len(data)), 100_000)
	m := other.manifest(time.Hour + time.Minute)
	if err := RunIncremental(ctx, other.open(), now, parent, changes, m, nil); err != nil {
		t.Fatal(err)
	}
	other.destroy()
	other.uncover()
	sameContent(t, other.open(), m, now)
}

// Whatever cannot be locked keeps a backup from being made, and a run that a prune replaces meanwhile does not.
func TestLockFails(t *testing.T) {
	refuses := errors.New("no")
	for _, c := range []struct {
		prefix string
		fails  error
		always bool
		want   error
	}{
		{"config", refuses, true, refuses},
		{"keys/", refuses, true, refuses},
		{"packs/", refuses, true, refuses},
		{"packs/", block.ErrNotFound, true, repository.ErrMarked},
		{"index/", refuses, true, refuses},
		{"index/", block.ErrNotFound, true, block.ErrNotFound},
		{"index/", block.ErrNotFound, false, nil},
		{"manifests/", refuses, true, refuses},
	} {
		v := newVault(t)
		v.locks.fail = func(key string, times int) error {
			if strings.HasPrefix(key, c.prefix) && (c.always || times == 1) {
				return c.fails
			}
			return nil
		}
		err := Run(t.Context(), v.open(), content(noise(1, 1<<20)), v.manifest(time.Hour), nil)
		if made := len(v.keys("manifests/")); !errors.Is(err, c.want) || made != 0 && c.want != nil || made != 1 && c.want == nil {
			t.Errorf("%s cannot be locked, %v: got %v, want %v, and there are %d backups", c.prefix, c.fails, err, c.want, made)
		}
	}
}

// A storage that says that it locks and does not is found out before anything relies on it.
func TestLocksThatAreNone(t *testing.T) {
	v := newVault(t)
	v.locks.blind = true
	if err := Run(t.Context(), v.open(), content(noise(1, 1<<20)), v.manifest(time.Hour), nil); !errors.Is(err, backend.ErrCannotLock) || len(v.keys("manifests/")) != 0 {
		t.Errorf("got %v, want %v; there are %v", err, backend.ErrCannotLock, v.keys("manifests/"))
	}
}

// A pack that is locked after a prune has asked for its lock stays, and the prune says so and does not fail.
func TestPruneMeetsALock(t *testing.T) {
	v := newVault(t)
	m := content(noise(1, 3<<20)).whole(t, v.open())
	key := v.keys("packs/")[0]
	if _, err := v.locks.Lock(t.Context(), key, time.Now().Add(time.Hour), 0); err != nil {
		t.Fatal(err)
	}
	v.forget(m)
	v.locks.blind = true
	v.prune(repository.PruneOptions{Alone: true})
	if got := v.prune(repository.PruneOptions{Alone: true}); got.DeletedPacks != 0 || got.DeletedBytes != 0 || got.LockedObjects != 1 || got.WaitingPacks != 1 {
		t.Errorf("the prune did %+v", got)
	}
	v.locks.blind = false
	if got := v.prune(repository.PruneOptions{Alone: true}); got.LockedPacks != 1 || got.LockedObjects != 0 || len(v.keys("packs/")) != 1 {
		t.Errorf("the next one did %+v, of packs %v", got, v.keys("packs/"))
	}
}

// Who may delete and may not ask for locks prunes as before there were any.
func TestPruneMayNotAsk(t *testing.T) {
	v := newVault(t)
	v.locks.can = fs.ErrPermission
	v.forget(content(noise(1, 1<<20)).whole(t, v.open()))
	v.prune(repository.PruneOptions{Alone: true})
	if got := v.prune(repository.PruneOptions{Alone: true}); got.DeletedPacks != 1 {
		t.Errorf("the prune did %+v", got)
	}
	if err := Run(t.Context(), v.open(), content(noise(1, 1<<20)), v.manifest(time.Hour), nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a lock: %v, want %v", err, fs.ErrPermission)
	}
}

// A copy can be locked where it goes, and carries no lock from where it was.
func TestLockedCopy(t *testing.T) {
	from, v := newPlace(t), newVault(t)
	ctx := t.Context()
	data := content(image(4, RegionSize+5000))
	m := data.whole(t, from.open())
	got, err := Copy(ctx, from.open(), v.open(), Copying{Backups: []*repository.Manifest{m}, Locked: time.Now().Add(time.Hour).Truncate(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	v.destroy()
	v.uncover()
	copied, err := v.open().Manifest(ctx, got[0].To)
	if err != nil || copied.LockedUntil.IsZero() {
		t.Fatalf("%+v, %v", copied, err)
	}
	sameContent(t, v.open(), copied, data)
	back := newPlace(t)
	got, err = Copy(ctx, v.open(), back.open(), Copying{Backups: []*repository.Manifest{copied}})
	if err != nil {
		t.Fatal(err)
	}
	if free, err := back.open().Manifest(ctx, got[0].To); err != nil || !free.LockedUntil.IsZero() || !free.PacksLockedUntil.IsZero() {
		t.Errorf("a copy says that it is locked: %+v, %v", free, err)
	}
}

// Where nothing can be locked, nothing is stored.
func TestCannotLock(t *testing.T) {
	p := newPlace(t)
	m := &repository.Manifest{Source: repository.Source{Kind: "volume", Name: "v"}, Consistency: "crash", LockedUntil: time.Now().Add(time.Hour)}
	if err := Run(t.Context(), p.open(), content(noise(1, 1<<20)), m, nil); !errors.Is(err, backend.ErrCannotLock) {
		t.Errorf("%v, want %v", err, backend.ErrCannotLock)
	}
	if packs := p.open().Packs(); len(packs) != 0 {
		t.Errorf("there are %d packs", len(packs))
	}
}

// A prune deletes what is not locked, all versions of it, and leaves the rest alone, however often it runs: neither locked packs, nor a locked run that lists packs which are gone, harm it or backups.
func TestPruneLocked(t *testing.T) {
	v := newVault(t)
	ctx := t.Context()
	prune := func() repository.Pruned {
		t.Helper()
		first := v.prune(repository.PruneOptions{Alone: true, RepackBytes: 1 << 30})
		second := v.prune(repository.PruneOptions{Alone: true, RepackBytes: 1 << 30})
		second.MarkedPacks, second.DeletedPacks = second.MarkedPacks+first.MarkedPacks, second.DeletedPacks+first.DeletedPacks
		return second
	}
	data := content(noise(1, 3<<20))
	locked := v.locked(data, time.Hour)
	loose := content(noise(2, 3<<20)).whole(t, v.open())
	before := v.keys("packs/")
	if err := v.open().Forget(ctx, locked.Name); !errors.Is(err, block.ErrInUse) || !strings.Contains(err.Error(), "locked until") {
		t.Errorf("forget what is locked: %v", err)
	}
	v.forget(loose)
	if got := prune(); got.DeletedPacks != 1 || got.LockedPacks != 0 || got.LockedObjects != 0 {
		t.Errorf("the prune of what is not locked did %+v, of packs %v", got, before)
	}
	for info := range v.g.Client(t).ListObjects(ctx, v.g.Bucket, minio.ListObjectsOptions{Prefix: "r/packs/", Recursive: true, WithVersions: true}) {
		if key := strings.TrimPrefix(info.Key, "r/"); !slices.Contains(v.keys("packs/"), key) {
			t.Errorf("of %s there is version %s still, %v", key, info.VersionID, info.Err)
		}
	}
	// Of a backup of three packs and more, the run and one pack are locked, as by a backup that needed a part of it.
	big := content(noise(3, 3*RegionSize)).whole(t, v.open())
	var added []string
	for _, key := range v.keys("") {
		if strings.HasPrefix(key, "packs/") && !slices.Contains(before, key) {
			added = append(added, key)
		}
	}
	end := time.Now().Add(time.Hour)
	for _, key := range append(v.keys("index/"), added[0]) {
		if _, err := v.locks.Lock(ctx, key, end, 0); err != nil {
			t.Fatal(err)
		}
	}
	v.forget(big)
	if got := v.prune(repository.PruneOptions{Alone: true, DryRun: true}); got.LockedPacks != 1 || got.MarkedPacks != len(added)-1 || got.UnlockedAt.IsZero() {
		t.Errorf("of %d packs one is locked, and the dry run says %+v", len(added), got)
	}
	if got := prune(); got.DeletedPacks != len(added)-1 || got.LockedPacks != 1 {
		t.Errorf("of %d packs one is locked, and the prune did %+v", len(added), got)
	}
	left := v.keys("")
	if !slices.Contains(left, added[0]) {
		t.Errorf("%s is locked, and gone", added[0])
	}
	for range 2 {
		if got := prune(); got.DeletedPacks != 0 || got.MarkedPacks != 0 || got.LockedPacks != 1 {
			t.Errorf("another prune did %+v", got)
		}
	}
	if again := v.keys(""); !slices.Equal(again, left) {
		t.Errorf("prunes that have nothing to do leave\n%v\nand before there was\n%v", again, left)
	}
	r := v.open()
	if _, err := r.Adopt(ctx, func(key string, err error) { t.Errorf("%s: %v", key, err) }); err != nil {
		t.Error(err)
	}
	part := content(noise(3, 2*RegionSize))
	again := part.whole(t, r)
	sameContent(t, v.open(), again, part)
	sound(t, v.open(), 2)
	sameContent(t, v.open(), locked, data)
}

// What somebody has put something else over is not relied on: not to be locked in its place.
func TestLockRefusesHidden(t *testing.T) {
	v := newVault(t)
	ctx := t.Context()
	data := content(noise(1, 3<<20))
	v.locked(data, time.Hour)
	key := v.keys("packs/")[0]
	o, err := v.in.Stat(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	forged := string(noise(5, int(o.SizeBytes)))
	if _, err := v.g.Client(t).PutObject(ctx, v.g.Bucket, "r/"+key, strings.NewReader(forged), o.SizeBytes, minio.PutObjectOptions{DisableMultipart: true, SendContentMd5: true}); err != nil {
		t.Fatal(err)
	}
	if err := Run(ctx, v.open(), data, v.manifest(2*time.Hour), nil); !errors.Is(err, repository.ErrHidden) {
		t.Errorf("a backup that needs the pack: %v, want %v", err, repository.ErrHidden)
	}
	v.uncover()
	sameContent(t, v.open(), v.locked(data, 2*time.Hour), data)
}
