package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/dir"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// place is a repository in a folder, and who may open it.
type place struct {
	t    *testing.T
	root string
	in   backend.Backend // instead of the folder, if it is there
	id   *age.X25519Identity
	wrap func(backend.Backend) backend.Backend // nil: as it is
}

func newPlace(t *testing.T) *place {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, root: filepath.Join(t.TempDir(), "r"), id: id}
	d, err := dir.Create(p.root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repository.Init(context.Background(), d, cdc.Default(), p.slot); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *place) slot(k *seal.Keys) (*seal.Slot, error) {
	return k.RecipientSlot([]age.Recipient{p.id.Recipient()}, "")
}

func (p *place) open() *repository.Repository {
	p.t.Helper()
	r := p.openOnly()
	if err := r.LoadIndex(context.Background(), nil); err != nil {
		p.t.Fatal(err)
	}
	return r
}

// openOnly opens the repository without its index.
func (p *place) openOnly() *repository.Repository {
	p.t.Helper()
	b := p.in
	if b == nil {
		d, err := dir.Open(p.root)
		if err != nil {
			p.t.Fatal(err)
		}
		b = d
	}
	if p.wrap != nil {
		b = p.wrap(b)
	}
	r, err := repository.Open(context.Background(), b, seal.Credentials{Identities: []age.Identity{p.id}})
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// image is a guest's disk of that many bytes: text that repeats, noise, and holes.
func image(seed uint64, size int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, size)
	for off := 0; off < size; {
		n := min(size-off, 4096*(1+rng.IntN(200)))
		switch p := b[off : off+n]; rng.IntN(4) {
		case 0: // zero
		case 1:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		default:
			copy(p, strings.Repeat(fmt.Sprintf("line %d of a log\n", rng.IntN(1000)), n/16))
		}
		off += n
	}
	return b
}

func writeImage(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += 1 << 20 {
		p := data[off:min(len(data), off+1<<20)]
		if len(bytes.Trim(p, "\x00")) == 0 {
			continue // a hole
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// keep backs up an image.
func keep(t *testing.T, r *repository.Repository, data []byte) (*repository.Manifest, error) {
	t.Helper()
	src, err := OpenFile(writeImage(t, data))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	m := &repository.Manifest{Source: repository.Source{Kind: "file", Name: "disk.raw"}, Consistency: "offline"}
	return m, Run(context.Background(), r, src, m, nil)
}

// sameContent restores a backup and compares it.
func sameContent(t *testing.T, r *repository.Repository, m *repository.Manifest, want []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "restored.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(m.SizeBytes)); err != nil {
		t.Fatal(err)
	}
	if err := Restore(context.Background(), r, m, f, nil); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("backup %s restores other bytes than it was made of", m.Name)
	}
}

func TestRunAndRestore(t *testing.T) {
	p := newPlace(t)
	size := 3*RegionSize + 12345
	data := image(1, size)
	copy(data[RegionSize:2*RegionSize], make([]byte, RegionSize)) // a region of zeroes
	r := p.open()
	first, err := keep(t, r, data)
	if err != nil {
		t.Fatal(err)
	}
	old := bytes.Clone(data)
	copy(data[100:], "changed since")
	copy(data[2*RegionSize-5000:], image(7, 10000))
	second, err := keep(t, p.open(), data)
	if err != nil {
		t.Fatal(err)
	}
	if second.NewBytes > 300_000 || second.NewBytes == 0 {
		t.Errorf("a few changed bytes of %d make %d new ones", size, second.NewBytes)
	}
	r = p.open()
	all, err := r.Manifests(context.Background(), nil)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d backups, %v", len(all), err)
	}
	sameContent(t, r, all[0], old)
	sameContent(t, r, all[1], data)
	if all[0].Name != first.Name || all[0].NonZero != first.NonZero {
		t.Errorf("the first backup is listed as %+v", all[0])
	}
	same, err := keep(t, r, data)
	if err != nil || same.NewBytes != 0 || same.StoredBytes != 0 {
		t.Errorf("the same content again stores %d B, %v", same.StoredBytes, err)
	}
	sound(t, r, 3)
}

// sound verifies everything and wants so many backups without a problem.
func sound(t *testing.T, r *repository.Repository, backups int) {
	t.Helper()
	got, err := Verify(context.Background(), r, Verification{DataPercent: 100, Problem: func(what string, err error) { t.Errorf("%s: %v", what, err) }})
	if err != nil || got.Backups != backups || got.Packs != len(r.Packs()) || backups > 0 && got.Chunks == 0 {
		t.Errorf("verified %+v, %v; want %d backups and all packs", got, err, backups)
	}
}

func TestSizes(t *testing.T) {
	p := newPlace(t)
	for _, size := range []int{0, 1, 4096, RegionSize, RegionSize + 1} {
		data := image(uint64(size), size)
		r := p.open()
		m, err := keep(t, r, data)
		if err != nil {
			t.Fatalf("%d B: %v", size, err)
		}
		sameContent(t, p.open(), m, data)
	}
}

// A writer's keys store backups that they cannot read.
func TestWriterKeys(t *testing.T) {
	p := newPlace(t)
	writer, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	err = p.open().AddSlot(ctx, func(k *seal.Keys) (*seal.Slot, error) {
		return k.Writer().RecipientSlot([]age.Recipient{writer.Recipient()}, "host1")
	})
	if err != nil {
		t.Fatal(err)
	}
	owner := p.id
	p.id = writer
	r, data := p.open(), image(3, RegionSize)
	m, err := keep(t, r, data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Manifests(ctx, nil); !errors.Is(err, seal.ErrReadKey) {
		t.Errorf("a writer lists backups: %v", err)
	}
	if err := Restore(ctx, r, m, nil, nil); !errors.Is(err, seal.ErrReadKey) {
		t.Errorf("a writer restores: %v", err)
	}
	if again, err := keep(t, p.open(), data); err != nil || again.NewBytes != 0 {
		t.Errorf("a writer does not find what is there: %d B new, %v", again.NewBytes, err)
	}
	p.id = owner
	sameContent(t, p.open(), m, data)
}

// A backup that fails at any of its writes leaves no trace that matters: all that was there before is sound, and the next run stores only what is missing.
func TestFaults(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	data := image(5, 3*RegionSize)
	for _, after := range []bool{false, true} {
		for at, failed := 1, true; failed; at++ {
			p := newPlace(t)
			before, err := keep(t, p.open(), data[:RegionSize])
			if err != nil {
				t.Fatal(err)
			}
			f := &backendtest.Faulty{At: at, Applied: after}
			p.wrap = func(b backend.Backend) backend.Backend { f.Backend = b; return f }
			r := p.open()
			_, err = keep(t, r, data)
			failed = f.Reached()
			if failed != (err != nil) || err != nil && !errors.Is(err, backendtest.ErrFault) {
				t.Fatalf("fault %d: got %v", at, err)
			}
			p.wrap = nil
			r = p.open()
			if _, err := r.Adopt(context.Background(), func(key string, err error) { t.Errorf("%s: %v", key, err) }); err != nil {
				t.Fatal(err)
			}
			sameContent(t, r, before, data[:RegionSize])
			m, err := keep(t, r, data)
			if err != nil {
				t.Fatalf("the run after fault %d: %v", at, err)
			}
			sameContent(t, p.open(), m, data)
			if at > 2 && m.NewBytes > m.NonZero*2/3 {
				t.Errorf("fault %d: of %d B the next run stores %d B again", at, m.NonZero, m.NewBytes)
			}
		}
	}
}

// Every object of a repository that is damaged or gone is noticed, and nothing wrong is ever restored.
func TestDamagedObjects(t *testing.T) {
	p := newPlace(t)
	data := image(8, RegionSize+RegionSize/2)
	if _, err := keep(t, p.open(), data); err != nil {
		t.Fatal(err)
	}
	var paths []string
	err := filepath.WalkDir(p.root, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, path := range paths {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 6 {
			bad := bytes.Clone(whole)
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			if rng.IntN(3) == 0 {
				bad = bad[:rng.IntN(len(bad))]
			}
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if !p.notices(data) && !strings.HasPrefix(filepath.Base(path), "config") {
				t.Errorf("damage of %s goes unnoticed", path)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sound(t, p.open(), 1)
}

// notices opens, verifies and restores, and reports whether something is found wrong. Bytes that are restored without an error must be right.
func (p *place) notices(want []byte) (noticed bool) {
	p.t.Helper()
	ctx := context.Background()
	d, err := dir.Open(p.root)
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := repository.Open(ctx, d, seal.Credentials{Identities: []age.Identity{p.id}})
	if err != nil {
		return true
	}
	if err := r.LoadIndex(ctx, nil); err != nil {
		return true
	}
	got, err := Verify(ctx, r, Verification{DataPercent: 100, Problem: func(string, error) {}})
	if err != nil || got.Problems > 0 {
		noticed = true
	}
	all, err := r.Manifests(ctx, func(string, error) {})
	if err != nil {
		return true
	}
	for _, m := range all {
		path := filepath.Join(p.t.TempDir(), "restored")
		f, err := os.Create(path)
		if err == nil {
			err = f.Truncate(int64(m.SizeBytes))
		}
		if err != nil {
			p.t.Fatal(err)
		}
		err = Restore(ctx, r, m, f, nil)
		f.Close()
		if err != nil {
			noticed = true
			continue
		}
		if restored, err := os.ReadFile(path); err != nil || !bytes.Equal(restored, want) {
			p.t.Errorf("wrong bytes were restored without an error: %v", err)
		}
	}
	return noticed || len(all) == 0
}

func TestVerifyNamesWhatIsMissing(t *testing.T) {
	p := newPlace(t)
	if _, err := keep(t, p.open(), image(9, RegionSize)); err != nil {
		t.Fatal(err)
	}
	r := p.open()
	gone := r.Packs()[0].Name
	if err := os.Remove(filepath.Join(p.root, "packs", gone[:2], gone)); err != nil {
		t.Fatal(err)
	}
	var found []string
	if _, err := Verify(context.Background(), r, Verification{Problem: func(what string, err error) {
		if errors.Is(err, block.ErrNotFound) {
			found = append(found, what)
		}
	}}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(found, " "), gone) {
		t.Errorf("found %q, want pack %s among it", found, gone)
	}
}
