package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// counting counts the bytes that are read.
type counting struct {
	backend.Backend
	read *atomic.Int64
}

func (c counting) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	c.read.Add(int64(len(p)))
	return c.Backend.ReadAt(ctx, key, p, off)
}

func manifests(t *testing.T, r *repository.Repository) []*repository.Manifest {
	t.Helper()
	all, err := r.Manifests(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// copyAll copies everything that there is.
func copyAll(t *testing.T, from, to *place) []Copied {
	t.Helper()
	source := from.open()
	got, err := Copy(context.Background(), source, to.open(), Copying{Backups: manifests(t, source)})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Copies are what they are copies of; what is there is neither stored nor read again, and copies of copies are known.
func TestCopy(t *testing.T) {
	from, _ := newMemoryPlace(t)
	to, there := newMemoryPlace(t)
	var read, readThere atomic.Int64
	from.wrap = func(b backend.Backend) backend.Backend { return counting{b, &read} }
	to.wrap = func(b backend.Backend) backend.Backend { return counting{b, &readThere} }
	data := image(31, 4*RegionSize+4096)
	first, err := keep(t, from.open(), data)
	if err != nil {
		t.Fatal(err)
	}
	source := from.open()
	plan, err := Copy(context.Background(), source, to.open(), Copying{Backups: manifests(t, source), DryRun: true})
	if err != nil || len(plan) != 1 || plan[0].Present || plan[0].To != "" || there.Bytes("packs/") != 0 {
		t.Errorf("a dry run: %+v, %v", plan, err)
	}
	got := copyAll(t, from, to)
	if len(got) != 1 || got[0].To == "" || got[0].From != first.Name || got[0].NewBytes == 0 {
		t.Fatalf("the first copy: %+v", got)
	}
	changed := bytes.Clone(data)
	copy(changed[2*RegionSize+5000:], noise(32, 200_000))
	second, err := keep(t, from.open(), changed)
	if err != nil {
		t.Fatal(err)
	}
	read.Store(0)
	readThere.Store(0)
	got = copyAll(t, from, to)
	if len(got) != 2 || !got[0].Present || got[1].Present || got[1].NewBytes < 200_000 || got[1].NewBytes > 1<<20 {
		t.Errorf("the second copy: %+v", got)
	}
	if n, m := read.Load(), readThere.Load(); n > 4<<20 || m > 3<<20 {
		t.Errorf("200 kB of %d are new, and %d B were read here, %d there", len(data), n, m)
	}
	packs := there.Bytes("")
	if got = copyAll(t, from, to); !got[0].Present || !got[1].Present || there.Bytes("") != packs {
		t.Errorf("nothing is new: %+v", got)
	}
	copies := manifests(t, to.open())
	if len(copies) != 2 || !copies[0].Time.Equal(first.Time) || copies[1].Source != second.Source {
		t.Fatalf("the copies are %+v", copies)
	}
	sameContent(t, to.open(), copies[0], data)
	sameContent(t, to.open(), copies[1], changed)
	sound(t, to.open(), 2)
	for _, c := range copyAll(t, to, from) { // back
		if !c.Present {
			t.Errorf("a copy is copied back: %+v", c)
		}
	}
	third, _ := newMemoryPlace(t)
	copyAll(t, to, third)
	for _, c := range copyAll(t, from, third) {
		if !c.Present {
			t.Errorf("a copy of a copy is not known: %+v", c)
		}
	}
	if _, err := Copy(context.Background(), from.open(), from.open(), Copying{}); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a copy onto itself: %v", err)
	}
}

// forgetting forgets a backup just before another is stored, or just after.
type forgetting struct {
	backend.Backend
	key   string
	after bool
}

func (f forgetting) Create(ctx context.Context, key string, data []byte) error {
	isManifest := strings.HasPrefix(key, "manifests/")
	if isManifest && !f.after {
		_ = f.Delete(ctx, f.key)
	}
	err := f.Backend.Create(ctx, key, data)
	if isManifest && f.after {
		_ = f.Delete(ctx, f.key)
	}
	return err
}

// A copy that shares content with a backup that is forgotten meanwhile does not exist: a prune may not have seen it. The next one does.
func TestCopyOfWhatIsForgotten(t *testing.T) {
	for _, after := range []bool{false, true} {
		from, _ := newMemoryPlace(t)
		to, _ := newMemoryPlace(t)
		data := noise(71, 2*RegionSize)
		if _, err := keep(t, from.open(), data); err != nil {
			t.Fatal(err)
		}
		copyAll(t, from, to)
		base := manifests(t, to.open())[0]
		copy(data, "changed")
		if _, err := keep(t, from.open(), data); err != nil {
			t.Fatal(err)
		}
		to.wrap = func(b backend.Backend) backend.Backend { return forgetting{b, "manifests/" + base.Name, after} }
		source := from.open()
		if _, err := Copy(context.Background(), source, to.open(), Copying{Backups: manifests(t, source)[1:]}); !errors.Is(err, repository.ErrMarked) {
			t.Errorf("after %v: %v", after, err)
		}
		to.wrap = nil
		if left := manifests(t, to.open()); len(left) != 0 {
			t.Errorf("after %v: %d backups are there", after, len(left))
		}
		copyAll(t, from, to)
		sameContent(t, to.open(), manifests(t, to.open())[1], data)
	}
}

// A repository that cuts differently gets the content cut its way, so that it has no chunk twice.
func TestCopyCutsAnew(t *testing.T) {
	from, _ := newMemoryPlace(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	to := &place{t: t, in: new(backendtest.Memory), id: id}
	cut := cdc.Default()
	cut.Min, cut.Avg, cut.Max = 2048, 8192, 32768
	if _, err := repository.Init(context.Background(), to.in, cut, to.slot); err != nil {
		t.Fatal(err)
	}
	data := image(33, RegionSize+RegionSize/2)
	if _, err := keep(t, from.open(), data); err != nil {
		t.Fatal(err)
	}
	copyAll(t, from, to)
	sameContent(t, to.open(), manifests(t, to.open())[0], data)
	if again, err := keep(t, to.open(), data); err != nil || again.NewBytes != 0 {
		t.Errorf("of what was copied %d B are new, %v", again.NewBytes, err)
	}
}

// A writer cannot pass a backup off as a copy, with which others would be skipped or put together wrongly.
func TestCopyBelievesOwnersOnly(t *testing.T) {
	from, _ := newMemoryPlace(t)
	to, _ := newMemoryPlace(t)
	first, err := keep(t, from.open(), noise(34, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	r := to.open()
	src, err := OpenFile(writeImage(t, noise(35, 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	forged := &repository.Manifest{Source: first.Source, Consistency: "offline", Origin: &repository.Origin{Repository: from.open().ID(), Backup: first.Name, Root: make([]byte, 32), Proof: make([]byte, 32)}}
	if err := Run(context.Background(), r, src, forged, nil); err != nil {
		t.Fatal(err)
	}
	if got := copyAll(t, from, to); got[0].Present {
		t.Errorf("a forged copy is believed: %+v", got)
	}
}

// A copy that is killed at any of its steps, or loses the answer of one, leaves what was there; the next one finishes and stores nothing twice.
func TestCopyFaults(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	from, source := newMemoryPlace(t)
	data := noise(36, 40<<20)
	var want [][]byte
	for n := range 2 {
		content := bytes.Clone(data)
		copy(content[n*3<<20:], noise(uint64(40+n), 1<<20))
		want = append(want, content)
		if _, err := keep(t, from.open(), content); err != nil {
			t.Fatal(err)
		}
	}
	clean, whole := newMemoryPlace(t)
	copyAll(t, from, clean)
	size := whole.Bytes("packs/")
	for _, dead := range []bool{true, false} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("applied %v, dead %v", applied, dead), func(t *testing.T) {
				t.Parallel()
				from := &place{t: t, in: source, id: from.id}
				for at, reached := 1, true; reached && (!testing.Short() || applied == dead); at++ {
					fault := &backendtest.Faulty{At: at, Applied: applied, Dead: dead}
					reached = copyFault(t, from, fault, want, size)
				}
			})
		}
	}
}

// copyFault lets a copy to an empty repository fail, and goes on with another one. size is what all packs of a copy have, bytes.
func copyFault(t *testing.T, from *place, fault *backendtest.Faulty, want [][]byte, size int) (reached bool) {
	t.Helper()
	what := fmt.Sprintf("fault at %d (applied %v, dead %v)", fault.At, fault.Applied, fault.Dead)
	to, m := newMemoryPlace(t)
	to.wrap = func(b backend.Backend) backend.Backend { fault.Backend = b; return fault }
	source, target := from.open(), to.open()
	_, err := Copy(context.Background(), source, target, Copying{Backups: manifests(t, source)})
	to.wrap = nil
	if reached = fault.Reached(); reached != (err != nil) {
		t.Fatalf("%s: got %v", what, err)
	}
	before := len(manifests(t, to.open()))
	target = to.open()
	if _, err := target.Adopt(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	got, err := Copy(context.Background(), source, target, Copying{Backups: manifests(t, source)})
	if err != nil || len(got) != 2 {
		t.Fatal(err)
	}
	present := 0
	for _, c := range got {
		if c.Present {
			present++
		}
	}
	if all := manifests(t, to.open()); len(all) != 2 || present != before {
		t.Errorf("%s: %d backups, then %d, of which %d were taken as there", what, before, len(all), present)
	}
	sound(t, to.open(), 2)
	if n := m.Bytes("packs/"); n > size+size/20 {
		t.Errorf("%s: %d B of packs instead of %d", what, n, size)
	}
	if fault.At%5 == 1 {
		for i, b := range manifests(t, to.open()) {
			sameContent(t, to.open(), b, want[i])
		}
	}
	return reached
}

// A backup that cannot be read is passed over, the others are copied.
func TestCopyOfDamage(t *testing.T) {
	from, m := newMemoryPlace(t)
	to, _ := newMemoryPlace(t)
	ctx := context.Background()
	for n := range 3 {
		if n == 1 {
			time.Sleep(time.Millisecond) // names have seconds, times more
		}
		if _, err := keep(t, from.open(), noise(uint64(50+n), 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	var key string
	_ = m.List(ctx, "packs/", func(o backend.Object) error { key = o.Key; return nil })
	o, _ := m.Stat(ctx, key)
	b := make([]byte, o.SizeBytes)
	if err := m.ReadAt(ctx, key, b, 0); err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(m.Delete(ctx, key), m.Create(ctx, key, b)); err != nil {
		t.Fatal(err)
	}
	source := from.open()
	got, err := Copy(ctx, source, to.open(), Copying{Backups: manifests(t, source)})
	if !errors.Is(err, block.ErrCorrupt) || len(got) != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
	if n := len(manifests(t, to.open())); n != 2 {
		t.Errorf("%d of 3 were copied, one of which is damaged", n)
	}
}

// A copy is whole although the repository has lost a pack of the copy before, with which it has most in common: what is lost is copied again.
func TestCopyToWhatHasLostPacks(t *testing.T) {
	ctx := context.Background()
	from, _ := newMemoryPlace(t)
	data := noise(60, 2*RegionSize) // its pages are in another pack than its first region
	if _, err := keep(t, from.open(), data); err != nil {
		t.Fatal(err)
	}
	source := from.open()
	old := manifests(t, source)
	copy(data[RegionSize+5000:], noise(61, 1000))
	if _, err := keep(t, from.open(), data); err != nil {
		t.Fatal(err)
	}
	source = from.open()
	for lost := 0; ; lost++ {
		to, m := newMemoryPlace(t)
		if _, err := Copy(ctx, source, to.open(), Copying{Backups: old}); err != nil {
			t.Fatal(err)
		}
		var packs []backend.Object
		_ = m.List(ctx, "packs/", func(o backend.Object) error { packs = append(packs, o); return nil })
		if lost == len(packs) {
			break
		}
		slices.SortFunc(packs, func(a, b backend.Object) int { return a.Created.Compare(b.Created) })
		if err := m.Delete(ctx, packs[lost].Key); err != nil {
			t.Fatal(err)
		}
		target, told := to.open(), 0
		if _, err := target.Adopt(ctx, func(string, error) { told++ }); err != nil || told != 1 {
			t.Errorf("told of a lost pack %d times, %v", told, err)
		}
		all := manifests(t, source)
		if _, err := Copy(ctx, source, target, Copying{Backups: all[1:]}); err != nil {
			t.Fatal(err)
		}
		sameContent(t, to.open(), manifests(t, to.open())[1], data)
	}
}
