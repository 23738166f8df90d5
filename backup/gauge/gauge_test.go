package gauge

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// image makes an image of half noise that it has twice, text, and a hole.
func image(t *testing.T) string {
	t.Helper()
	noise := make([]byte, 8<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off, p := range map[int64][]byte{0: noise, 16 << 20: noise, 32 << 20: bytes.Repeat([]byte("all work and no play makes a dull disk\n"), 8<<20/39)} {
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(256 << 20); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is measured of data is what is in it.
func TestData(t *testing.T) {
	src, err := backup.OpenFile(image(t))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	d, err := Data(t.Context(), src, 1<<30, cdc.Default(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d.SourceBytes != 256<<20 || d.SampledBytes != 256<<20 || d.DataBytes < 24<<20-100 || d.DataBytes > 24<<20+3*65536 {
		t.Errorf("of 256 MiB, 24 of them data: %+v", d)
	}
	if d.UniqueBytes < 8<<20 || d.UniqueBytes > 10<<20 || d.CompressedBytes < 8<<20 || d.CompressedBytes > 9<<20 || d.Ratio() < 2.5 || d.Ratio() > 3.2 {
		t.Errorf("8 MiB of noise are there twice, and text: %+v, %.2f", d, d.Ratio())
	}
	for name, r := range map[string]Rate{"read": d.Read, "cut": d.Cut, "compress": d.Compress, "seal": d.Seal, "open": d.Open} {
		if r.Bytes == 0 || r.Seconds <= 0 || r.PerSecond() <= 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	few, err := Data(t.Context(), src, 1<<20, cdc.Default(), nil)
	if err != nil || few.SampledBytes == 0 || few.SampledBytes > 4<<20+2*maxWorkers*backup.RegionSize {
		t.Errorf("a sample of 1 MiB: %+v, %v", few, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Data(ctx, src, 1<<30, cdc.Default(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("it was interrupted: %v", err)
	}
}

// Objects are gone in the end, whatever fails meanwhile, also those that another one left, but not those of one that is at work.
func TestStorage(t *testing.T) {
	b := new(backendtest.Memory)
	for _, key := range []string{"bench/0123456789abcdef0123456789abcdef", "config"} {
		if err := b.Create(t.Context(), key, []byte("old")); err != nil {
			t.Fatal(err)
		}
	}
	b.Wait(2 * leftAfter)
	if err := b.Create(t.Context(), "bench/00000000000000000000000000000000", []byte("young")); err != nil {
		t.Fatal(err)
	}
	o := StorageOptions{Requests: []int{1, 4}, ObjectBytes: 100_000, ReadBytes: 1000, MostBytes: 1_000_000, Time: time.Hour}
	all, err := Storage(t.Context(), b, o)
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	for i, r := range all {
		if r.Put.Count != 10 || r.Put.Bytes != 1_000_000 || r.Get.Count != 1000 || r.Get.Bytes != 1_000_000 || r.Delete.Count != 10 || r.Put.Requests != o.Requests[i] {
			t.Errorf("%+v", r)
		}
		if r.Put.P50 <= 0 || r.Put.P99 < r.Put.P50 || r.Put.Slowest < r.Put.P99 {
			t.Errorf("%+v", r.Put)
		}
	}
	left := func(what string) {
		t.Helper()
		if n := b.Bytes("bench/"); n != len("young") || b.Bytes("config") == 0 {
			t.Errorf("%s: %d B are left", what, n)
		}
	}
	left("all is well")
	for at := 1; at <= 12; at++ {
		faulty := &backendtest.Faulty{Backend: b, At: at, Applied: at%2 == 0}
		o := o
		o.Requests = []int{4}
		if _, err := Storage(t.Context(), faulty, o); !errors.Is(err, backendtest.ErrFault) {
			t.Errorf("fault %d: %v", at, err)
		}
		if at <= 10 { // a Create; a Delete that fails leaves its object
			left("after a fault")
		}
	}
	b.Wait(2 * leftAfter)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Storage(ctx, interrupting{b, cancel}, o); !errors.Is(err, context.Canceled) {
		t.Errorf("it was interrupted: %v", err)
	}
	if n := b.Bytes("bench/"); n != 0 {
		t.Errorf("%d B are left by one that was interrupted, and others", n)
	}
	for _, bad := range []StorageOptions{{}, {Requests: []int{0}}, {Requests: []int{100}}, {Requests: []int{60}}, {Requests: []int{1}, ObjectBytes: 10, ReadBytes: 11}} {
		if _, err := Storage(t.Context(), b, bad); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// interrupting is a backend during whose first read there is an interrupt.
type interrupting struct {
	backend.Backend
	interrupt context.CancelFunc
}

func (i interrupting) ReadAt(ctx context.Context, _ string, _ []byte, _ int64) error {
	i.interrupt()
	return ctx.Err()
}

// A restore is measured as far as it is asked for.
func TestRestore(t *testing.T) {
	r, err := repository.Init(t.Context(), new(backendtest.Memory), cdc.Default(), func(k *seal.Keys) (*seal.Slot, error) { return k.PassphraseSlot([]byte("x"), "") })
	if err != nil {
		t.Fatal(err)
	}
	src, err := backup.OpenFile(image(t))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	m := &repository.Manifest{Source: repository.Source{Kind: "file", Name: "disk"}}
	if err := backup.Run(t.Context(), r, src, m, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ most, from, to uint64 }{{1 << 40, 24<<20 - 100, 24<<20 + 3*65536}, {1 << 20, 1 << 20, 20 << 20}} {
		rate, err := Restore(t.Context(), r, m, c.most)
		if err != nil || rate.Bytes < c.from || rate.Bytes > c.to || rate.Seconds <= 0 {
			t.Errorf("at most %d B: %+v, %v", c.most, rate, err)
		}
	}
}
