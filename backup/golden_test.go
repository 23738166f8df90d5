package backup

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/dir"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

var makeGolden = flag.Bool("golden.repository", false, "make the repository of TestGoldenRepository; its format must have a new version then")

// goldenContent is what the two backups in the golden repository are of, by their size.
func goldenContent() map[uint64][]byte {
	return map[uint64][]byte{300_000: image(41, 300_000), RegionSize + 5000: append(make([]byte, RegionSize), image(42, 5000)...)}
}

// A repository of version 1 must be readable for ever.
func TestGoldenRepository(t *testing.T) {
	const root = "testdata/repository-1"
	ctx := context.Background()
	text, err := os.ReadFile(filepath.Join("testdata", "identity"))
	if *makeGolden {
		id, idErr := age.GenerateX25519Identity()
		if idErr != nil {
			t.Fatal(idErr)
		}
		text, err = []byte(id.String()), os.MkdirAll("testdata", 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join("testdata", "identity"), text, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.ParseX25519Identity(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if *makeGolden {
		makeGoldenRepository(t, root, id)
	}
	d, err := dir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repository.Open(ctx, d, seal.Credentials{Identities: []age.Identity{id}})
	if err == nil {
		err = r.LoadIndex(ctx, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r, 2)
	all, err := r.Manifests(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		sameContent(t, r, m, goldenContent()[m.SizeBytes])
	}
	byPassphrase, err := repository.Open(ctx, d, seal.Credentials{Passphrase: []byte("golden")})
	if err != nil || byPassphrase.Keys().CanRead() {
		t.Errorf("the writer's passphrase: %v", err)
	}
	if _, err := repository.Open(ctx, d, seal.Credentials{Passphrase: []byte("other")}); !errors.Is(err, seal.ErrWrongKey) {
		t.Errorf("another passphrase: got %v, want %v", err, seal.ErrWrongKey)
	}
}

func makeGoldenRepository(t *testing.T, root string, id *age.X25519Identity) {
	t.Helper()
	ctx := context.Background()
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	d, err := dir.Create(root)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repository.Init(ctx, d, cdc.Default(), func(k *seal.Keys) (*seal.Slot, error) {
		return k.RecipientSlot([]age.Recipient{id.Recipient()}, "owner")
	})
	if err == nil {
		err = r.AddSlot(ctx, func(k *seal.Keys) (*seal.Slot, error) { return k.Writer().PassphraseSlot([]byte("golden"), "host") })
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range goldenContent() {
		if _, err := keep(t, r, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(root, "tmp")); err != nil && !errors.Is(err, block.ErrNotFound) {
		t.Fatal(err)
	}
}

// goldenDays are what the two backups in the golden repository with slices are of, the second one an increment.
func goldenDays() (first, second content, changed []block.Range) {
	first = image(43, 400_000)
	second = append(content{}, first...)
	for _, r := range []block.Range{{Off: 8192, Len: 4096}, {Off: 204800, Len: 12288}, {Off: 397312, Len: 2688}} {
		copy(second[r.Off:], noise(r.Off, int(r.Len)))
		changed = append(changed, r)
	}
	return first, second, changed
}

// A repository with slices must be readable for ever.
func TestGoldenSlices(t *testing.T) {
	const root = "testdata/repository-1-slices"
	if *makeGolden {
		makeGoldenSlices(t, root)
	}
	d, err := dir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repository.Open(t.Context(), d, seal.Credentials{Passphrase: []byte("golden")})
	if err == nil {
		err = r.LoadIndex(t.Context(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r, 2)
	first, second, _ := goldenDays()
	for _, m := range manifests(t, r) {
		if m.Parent == "" {
			sameContent(t, r, m, first)
			continue
		}
		sameContent(t, r, m, second)
		if _, sliced := extentsOf(t, r, m); sliced == 0 {
			t.Error("the increment has no slices")
		}
	}
}

func makeGoldenSlices(t *testing.T, root string) {
	t.Helper()
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	d, err := dir.Create(root)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repository.Init(t.Context(), d, cdc.Default(), func(k *seal.Keys) (*seal.Slot, error) { return k.PassphraseSlot([]byte("golden"), "owner") })
	if err != nil {
		t.Fatal(err)
	}
	first, second, changed := goldenDays()
	if err := r.LoadIndex(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := second.since(t.Context(), r, first.whole(t, r), changed); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "tmp")); err != nil && !errors.Is(err, block.ErrNotFound) {
		t.Fatal(err)
	}
}
