package blockstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestCollectOnAFullDisk fills a disk until writes get ENOSPC, trims, and writes again: what was trimmed is emptied, audited and deleted while the writer waits, as the reserve gives room for that.
func TestCollectOnAFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes some hundred MiB")
	}
	dir := t.TempDir()
	opts := testOptions(t, &smallDisk{FS: vfs.Default, dir: dir, size: 320 << 20}, dir)
	opts.LogCapBytes, opts.ReserveBytes = 64<<20, 24<<20
	opts.Events.BackgroundError = nil // destage may wait for room
	s := openTest(t, opts)
	d := createTest(t, s, "a", 512<<20)
	rng := rand.New(rand.NewPCG(2, 2))
	data := make([]byte, 1<<20)
	fill := func(from, to int) (n int, err error) {
		for n = from; n < to && err == nil; n++ {
			for i := 0; i < len(data); i += 8 {
				putBE64(data[i:], rng.Uint64())
			}
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			err = d.Write(ctx, []block.Write{{Off: uint64(n) << 20, Data: data}}, false)
			cancel()
		}
		return n, err
	}
	full, err := fill(0, 512)
	if !errors.Is(err, block.ErrNoSpace) || full < 100 {
		t.Fatalf("%d MiB: %v", full, err)
	}
	// Of every 8 MiB one stays, so that segments must be emptied.
	for off := 0; off < full; off += 8 {
		if err := d.Trim(context.Background(), block.Range{Off: uint64(off)<<20 + 1<<20, Len: 7 << 20}, false); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := fill(256, 256+100); err != nil {
		t.Fatalf("after most was trimmed, %d MiB more: %v; %+v", n-256, err, s.GC())
	}
	if st := s.GC(); st.Audits == 0 || st.FreedBytes == 0 || st.MovedBytes == 0 {
		t.Errorf("%+v", st)
	}
	settleTest(t, s)
	if r, err := s.Audit(context.Background(), nil); err != nil || r.Unreachable+r.WrongSegments > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}
