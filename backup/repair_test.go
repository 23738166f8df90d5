package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// objects returns the paths of the objects of a kind, the largest last.
func (p *place) objects(kind string) (paths []string) {
	p.t.Helper()
	sizes := make(map[string]int64)
	err := filepath.WalkDir(filepath.Join(p.root, kind), func(path string, e os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.Type().IsRegular() {
			paths = append(paths, path)
			var info os.FileInfo
			if info, err = e.Info(); err == nil {
				sizes[path] = info.Size()
			}
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	slices.SortFunc(paths, func(a, b string) int { return int(sizes[a] - sizes[b]) })
	return paths
}

// kinds of damage that an object may suffer.
var kinds = map[string]func(b []byte) []byte{
	"gone":    func([]byte) []byte { return nil },
	"cut off": func(b []byte) []byte { return b[:len(b)*2/3] },
	"head":    func(b []byte) []byte { spoil(b[36:60]); return b },
	"middle":  func(b []byte) []byte { spoil(b[len(b)/2:][:40]); return b },
	"tail":    func(b []byte) []byte { spoil(b[len(b)-60:]); return b },
	"bit":     func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
}

// spoil changes bytes, more than a repair corrects.
func spoil(b []byte) {
	for i := range b {
		b[i] ^= 0x5a
	}
}

func (p *place) harm(path, kind string) {
	p.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		p.t.Fatal(err)
	}
	if b = kinds[kind](b); b == nil {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// clone is the same repository in another folder.
func (p *place) clone() *place {
	p.t.Helper()
	c := *p
	c.root = filepath.Join(p.t.TempDir(), "clone")
	if err := os.CopyFS(c.root, os.DirFS(p.root)); err != nil {
		p.t.Fatal(err)
	}
	return &c
}

// cdcMost is as long as a chunk is.
const cdcMost = 64 << 10

// flip damages frames of the largest pack between two offsets.
func (p *place) flip(begin, end int) {
	p.t.Helper()
	packs := p.objects("packs")
	path := packs[len(packs)-1]
	b, err := os.ReadFile(path)
	if err != nil {
		p.t.Fatal(err)
	}
	for off := begin; off < min(end, len(b)*3/4); off += 100_000 {
		spoil(b[off : off+40])
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) repair(o Repairing) Repaired {
	p.t.Helper()
	got, err := Repair(context.Background(), p.open(), o)
	if err != nil {
		p.t.Fatal(err)
	}
	return got
}

// open without a complaint about what is damaged.
func (p *place) openDamaged() *repository.Repository {
	p.t.Helper()
	r := p.openOnly()
	if err := r.LoadIndex(context.Background(), func(string, error) {}); err != nil {
		p.t.Fatal(err)
	}
	return r
}

// state is all objects of a repository.
func (p *place) state() map[string]string {
	p.t.Helper()
	all := make(map[string]string)
	for _, path := range p.objects("") {
		b, err := os.ReadFile(path)
		if err != nil {
			p.t.Fatal(err)
		}
		all[path] = string(b)
	}
	return all
}

// content returns what of a backup can be read, in pieces of 4 KiB, nil for those that cannot, and wants all others to be right.
func (p *place) content(r *repository.Repository, m *repository.Manifest, want []byte) (lost map[int]bool) {
	p.t.Helper()
	d, err := NewDevice(r, m, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer d.Close()
	lost = make(map[int]bool)
	b := make([]byte, 4096)
	for off := 0; off < len(want); off += len(b) {
		piece := b[:min(len(b), len(want)-off)]
		if err := d.ReadOnce(context.Background(), piece, uint64(off)); err != nil {
			if !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrNotFound) {
				p.t.Fatal(err)
			}
			lost[off] = true
		} else if !bytes.Equal(piece, want[off:off+len(piece)]) {
			p.t.Fatalf("backup %s has wrong bytes at %d", m.Name, off)
		}
	}
	return lost
}

// damagedPlace is a repository with two backups, what they are of, and another repository with copies.
func damagedPlace(t *testing.T) (p, other *place, old, now []byte) {
	t.Helper()
	p, other = newPlace(t), newPlace(t)
	old = image(51, RegionSize+(1<<20))
	clear(old[5<<20 : RegionSize]) // less to do
	now = bytes.Clone(old)
	copy(now[3<<20:], noise(52, 300<<10))
	for _, data := range [][]byte{old, now} {
		if _, err := keep(t, p.open(), data); err != nil {
			t.Fatal(err)
		}
	}
	copyAll(t, p, other)
	return p, other, old, now
}

// Whatever happens to any one object of a repository, another repository that has copies, with other keys, or a mirror of it, mends it.
func TestRepairFromARepository(t *testing.T) {
	p, other, old, now := damagedPlace(t)
	mirror, number := p.clone(), 0
	for _, folder := range []string{"packs", "index", "manifests"} {
		for i := range p.objects(folder) {
			if i == 0 && folder != "packs" {
				continue // one of each kind will do
			}
			for _, kind := range slices.Sorted(maps.Keys(kinds)) {
				if folder == "manifests" && kind == "gone" {
					continue // that is a backup that was forgotten
				}
				for _, from := range []*place{other, mirror}[number%2 : number%2+1] {
					number++
					q := p.clone()
					path := q.objects(folder)[i]
					q.harm(path, kind)
					what := fmt.Sprintf("%s %d %s, from %v", folder, i, kind, map[bool]string{true: "the mirror", false: "copies"}[from == mirror])
					before := q.state()
					source := RepairFrom{Name: "other", Repository: from.open()}
					plan, err := Repair(context.Background(), q.openDamaged(), Repairing{From: []RepairFrom{source}, DryRun: true})
					if err != nil || plan.Lost() || !plan.Found() {
						t.Fatalf("%s: a dry run finds %+v, %v", what, plan, err)
					}
					if after := q.state(); len(after) != len(before) {
						t.Fatalf("%s: a dry run stores %d objects", what, len(after)-len(before))
					}
					got, err := Repair(context.Background(), q.openDamaged(), Repairing{From: []RepairFrom{source}})
					if err != nil || got.Lost() || !slices.Equal(got.Mended, plan.Mended) {
						t.Fatalf("%s: a repair does %+v, and would have done %+v, %v", what, got, plan, err)
					}
					r := q.open()
					sound(t, r, 2)
					all := manifests(t, r)
					sameContent(t, r, all[0], old)
					sameContent(t, r, all[1], now)
					for _, c := range copyAll(t, q, other) { // a backup that got another name is the same one
						if !c.Present {
							t.Errorf("%s: it is copied once more: %+v", what, c)
						}
					}
					if again := q.repair(Repairing{}); again.Lost() || len(again.Mended) > 0 || len(again.DamagedRuns)+len(again.Manifests)+len(again.UnlistedPacks) > 0 {
						t.Errorf("%s: another repair finds %+v", what, again)
					}
				}
			}
		}
	}
}

// A repository mends itself where it has what is lost: other packs with the same chunks, and what is whole in a damaged one.
func TestRepairOfItself(t *testing.T) {
	p, _, old, now := damagedPlace(t)
	packs := p.objects("packs")
	whole, err := os.ReadFile(packs[len(packs)-1])
	if err != nil {
		t.Fatal(err)
	}
	q := p.clone()
	q.harm(q.objects("packs")[len(packs)-1], "middle")
	got, err := Repair(context.Background(), q.openDamaged(), Repairing{})
	if err != nil || !got.Lost() || len(got.DamagedPacks) != 1 || len(got.Mended) != 1 || got.Mended[0].Bytes < 1<<20 {
		t.Fatalf("one frame of %d B of packs is damaged: %+v, %v", len(whole), got, err)
	}
	var marked int
	for _, d := range q.openDamaged().Packs() {
		if d.Marked {
			marked++
		}
	}
	if marked != 1 {
		t.Errorf("%d packs are marked", marked)
	}
	// A backup of the same content stores anew what is lost, and so mends older ones.
	if _, err := keep(t, q.open(), old); err != nil {
		t.Fatal(err)
	}
	if _, err := keep(t, q.open(), now); err != nil {
		t.Fatal(err)
	}
	r := q.open()
	sound(t, r, 4)
	sameContent(t, r, manifests(t, r)[0], old)
	if _, err := Prune(context.Background(), q.open(), repository.PruneOptions{Alone: true, Warn: func(string, error) {}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Prune(context.Background(), q.open(), repository.PruneOptions{Alone: true, Warn: func(string, error) {}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, d := range q.open().Packs() {
		if d.Marked {
			t.Errorf("pack %s is there still", d.Name)
		}
	}
	sound(t, q.open(), 4)
}

// What cannot be mended is told to the byte, and nothing else is lost: neither before nor after the repair.
func TestRepairTellsWhatIsLost(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			p, _, old, now := damagedPlace(t)
			all := manifests(t, p.open())
			packs := p.objects("packs")
			p.harm(packs[len(packs)-1], kind)
			got := p.repairDamaged(Repairing{})
			if kind != "tail" && kind != "bit" && !got.Lost() || len(got.DamagedPacks) != 1 { // of a pack whose directory alone is damaged the index knows what is in it
				t.Fatalf("it finds %+v", got)
			}
			for i, data := range [][]byte{old, now} {
				lost := p.content(p.openDamaged(), all[i], data)
				told := make(map[int]bool)
				for _, b := range got.Damaged {
					if b.Name != all[i].Name {
						continue
					}
					for _, x := range b.Lost {
						for off := x.Offset / 4096 * 4096; off < x.Offset+x.Length; off += 4096 {
							told[int(off)] = true
						}
					}
				}
				if len(lost) != len(told) {
					t.Errorf("of backup %d %d pieces cannot be read, and %d were told", i, len(lost), len(told))
				}
				for off := range lost {
					if !told[off] {
						t.Errorf("what lies at %d of backup %d cannot be read, and was not told", off, i)
					}
				}
			}
		})
	}
}

func (p *place) repairDamaged(o Repairing) Repaired {
	p.t.Helper()
	got, err := Repair(context.Background(), p.openDamaged(), o)
	if err != nil {
		p.t.Fatal(err)
	}
	return got
}

// Content that a backup was made of has what did not change since, and nothing else is taken from it.
func TestRepairFromContent(t *testing.T) {
	p, _, old, now := damagedPlace(t)
	all := manifests(t, p.open())
	p.flip(300_000, 10<<20)
	q := p.clone()
	changed := bytes.Clone(old) // since
	copy(changed[:3<<20], noise(53, 3<<20))
	got := q.repairDamaged(Repairing{From: []RepairFrom{{Name: "v", Content: content(changed), Source: "disk.raw"}}})
	if !got.Lost() || !slices.ContainsFunc(got.Mended, func(by MendedBy) bool { return by.From == "v" }) {
		t.Fatalf("from content that has changed in part: %+v", got)
	}
	lost := q.content(q.openDamaged(), all[0], old)
	if len(lost) == 0 {
		t.Error("what has changed since was found")
	}
	for off := range lost {
		if off > 3<<20+cdcMost {
			t.Errorf("what lies at %d did not change, and cannot be read", off)
		}
	}
	got = p.repairDamaged(Repairing{From: []RepairFrom{{Name: "wrong", Content: content(noise(54, len(old)))}, {Name: "short", Content: content(old[:100])}}})
	if slices.ContainsFunc(got.Mended, func(by MendedBy) bool { return by.From == "wrong" || by.From == "short" }) || !got.Lost() {
		t.Errorf("from other bytes: %+v", got)
	}
	got = p.repairDamaged(Repairing{From: []RepairFrom{{Name: "old", Content: content(old), Source: "disk.raw"}, {Name: "now", Content: content(now), Source: "disk.raw"}}})
	if got.Lost() {
		t.Errorf("from what it was made of: %+v", got)
	}
	r := p.open()
	sound(t, r, 2)
	sameContent(t, r, all[0], old)
	sameContent(t, r, all[1], now)
}

// A repository that has the same data of other sources is read whole, and has it by its bytes.
func TestRepairFromAnywhere(t *testing.T) {
	p := newPlace(t)
	data := noise(55, 5<<20)
	m, err := keep(t, p.open(), data)
	if err != nil {
		t.Fatal(err)
	}
	packs := p.objects("packs")
	b, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	for off := 3000; off < len(b)-1_600_000; off += 300_000 { // frames of data, not the last one with page and directory
		spoil(b[off : off+40])
	}
	if err := os.WriteFile(packs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	other := newPlace(t)
	if _, err := content(append(noise(56, 3<<20), data...)).wholeOf(t, other.open(), "another"); err != nil {
		t.Fatal(err)
	}
	got := p.repairDamaged(Repairing{From: []RepairFrom{{Name: "other", Repository: other.open()}}})
	if len(got.Mended) == 0 || got.Damaged[0].LostBytes > 200_000 { // what the cut at other places made of the ends
		t.Fatalf("it did %+v", got)
	}
	if lost := p.content(p.openDamaged(), m, data); len(lost)*4096 > 200_000+2*4096 {
		t.Errorf("%d pieces cannot be read", len(lost))
	}
}

func (c content) wholeOf(t *testing.T, r *repository.Repository, name string) (*repository.Manifest, error) {
	m := &repository.Manifest{Source: repository.Source{Kind: "volume", Name: name}, Consistency: "crash"}
	return m, Run(t.Context(), r, c, m, nil)
}

// A backup that was forgotten comes back only if asked for.
func TestMissingBackups(t *testing.T) {
	p, other, old, _ := damagedPlace(t)
	mirror := p.clone()
	for _, from := range []*place{other, mirror} {
		q := p.clone()
		all := manifests(t, q.open())
		q.forget(all[0])
		source := []RepairFrom{{Name: "other", Repository: from.open()}}
		if got := q.repair(Repairing{From: source}); got.Found() {
			t.Errorf("a forgotten backup is taken for damage: %+v", got)
		}
		got := q.repair(Repairing{From: source, MissingBackups: true})
		if len(got.Manifests) != 1 || got.Manifests[0].Name != all[0].Name || got.Manifests[0].As == "" {
			t.Fatalf("it did %+v", got)
		}
		r := q.open()
		sound(t, r, 2)
		sameContent(t, r, manifests(t, r)[0], old)
		if again := q.repair(Repairing{From: source, MissingBackups: true}); again.Found() {
			t.Errorf("another one does %+v", again)
		}
	}
}

// A repair that dies at any of its changes leaves the repository no worse: what could be read can be, and the next one finishes.
func TestRepairDies(t *testing.T) {
	p, other, old, now := damagedPlace(t)
	all := manifests(t, p.open())
	packs := p.objects("packs")
	p.harm(packs[len(packs)-1], "middle")
	p.harm(p.objects("index")[0], "middle")
	p.harm(filepath.Join(p.root, "manifests", all[1].Name), "tail")
	before := p.content(p.openDamaged(), all[0], old)
	for _, parity := range []int{0, 1} {
		for at, reached := 1, true; reached; at++ {
			q := p.clone()
			f := &backendtest.Faulty{At: at, Applied: at%2 == parity, Dead: true}
			q.wrap = func(b backend.Backend) backend.Backend { f.Backend = b; return f }
			source := []RepairFrom{{Name: "other", Repository: other.open()}}
			_, err := Repair(context.Background(), q.openDamaged(), Repairing{From: source})
			reached = f.Reached()
			if reached != (err != nil) {
				t.Fatalf("change %d: %v", at, err)
			}
			q.wrap = nil
			left := q.content(q.openDamaged(), all[0], old)
			for off := range left {
				if !before[off] {
					t.Fatalf("change %d: what lies at %d could be read before", at, off)
				}
			}
			if got := q.repairDamaged(Repairing{From: source}); got.Lost() {
				t.Fatalf("change %d: the next repair does %+v", at, got)
			}
			r := q.open()
			sound(t, r, 2)
			again := manifests(t, r)
			sameContent(t, r, again[0], old)
			sameContent(t, r, again[1], now)
			if at > 60 {
				t.Fatal("it never ends")
			}
		}
	}
}

// With --quick only what is missing or cut off is found.
func TestQuickRepair(t *testing.T) {
	p, other, old, _ := damagedPlace(t)
	source := []RepairFrom{{Name: "other", Repository: other.open()}}
	flipped, cut := p.clone(), p.clone()
	packs := p.objects("packs")
	flipped.harm(flipped.objects("packs")[len(packs)-1], "middle")
	if got := flipped.repairDamaged(Repairing{From: source, Quick: true}); len(got.DamagedPacks) != 0 {
		t.Errorf("it reads packs: %+v", got)
	}
	cut.harm(cut.objects("packs")[len(packs)-1], "cut off")
	if got := cut.repairDamaged(Repairing{From: source, Quick: true}); got.Lost() || len(got.DamagedPacks) != 1 || !strings.Contains(got.DamagedPacks[0].Problem, repository.PackDamaged) {
		t.Errorf("a pack is cut off: %+v", got)
	}
	r := cut.open()
	sound(t, r, 2)
	sameContent(t, r, manifests(t, r)[0], old)
}

// meanwhile does something once, when a repair stores its first pack.
type meanwhile struct {
	backend.Backend
	do *func()
}

func (m meanwhile) Create(ctx context.Context, key string, data []byte) error {
	if do := *m.do; do != nil && strings.HasPrefix(key, "packs/") {
		*m.do = nil
		do()
	}
	return m.Backend.Create(ctx, key, data)
}

// A backup, a prune and another repair that run while a repair does harm nothing and are not harmed.
func TestRepairBesideOthers(t *testing.T) {
	p, other, old, now := damagedPlace(t)
	packs := p.objects("packs")
	p.harm(packs[len(packs)-1], "middle")
	source := func() []RepairFrom { return []RepairFrom{{Name: "other", Repository: other.open()}} }
	third := image(58, 3<<20)
	q := *p
	do := func() {
		if _, err := keep(t, p.openDamaged(), third); err != nil {
			t.Error(err)
		}
		o := repository.PruneOptions{Grace: grace, Damaged: true, Warn: func(string, error) {}}
		if _, err := Prune(context.Background(), p.openDamaged(), o, nil); err != nil {
			t.Error(err)
		}
		if got := p.repairDamaged(Repairing{From: source()}); got.Lost() {
			t.Errorf("the other repair does %+v", got)
		}
	}
	q.wrap = func(b backend.Backend) backend.Backend { return meanwhile{b, &do} }
	if got := q.repairDamaged(Repairing{From: source()}); got.Lost() || do != nil {
		t.Errorf("it does %+v", got)
	}
	r := p.open()
	sound(t, r, 3)
	for i, data := range [][]byte{old, now, third} {
		sameContent(t, r, manifests(t, r)[i], data)
	}
}

// A flipped bit anywhere, in a pack, an index or a manifest, needs no other repository.
func TestFlippedBitsAreCorrected(t *testing.T) {
	p, _, old, now := damagedPlace(t)
	for _, folder := range []string{"packs", "index", "manifests"} {
		paths := p.objects(folder)
		for i, path := range paths[len(paths)-1:] {
			i += len(paths) - 1
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range []int{9, 40, 200, len(b) / 3, len(b) - 50, len(b) - 20, len(b) - 1} {
				q := p.clone()
				path := q.objects(folder)[i]
				bad := bytes.Clone(b)
				bad[at] ^= 1 << (at % 8)
				if err := os.WriteFile(path, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				got := q.repairDamaged(Repairing{})
				if got.Lost() || !got.Found() {
					t.Fatalf("%s %d of %d B, a bit at %d: %+v", folder, i, len(b), at, got)
				}
				r := q.open()
				sound(t, r, 2)
				all := manifests(t, r)
				sameContent(t, r, all[0], old)
				sameContent(t, r, all[1], now)
			}
		}
	}
}
