package blockstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A long read of blocks that lie all over the log is left to a worker, and gets what was written; one that is under way when the store is closed ends with its bytes or an
// error, and never meets a mapping that is gone.
func TestScatteredReads(t *testing.T) {
	opts := smallLog(t)
	s := openTest(t, opts)
	const size = 8 << 20
	d := createTest(t, s, "v", size)
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(7, 8))
	want := guestData(rng, size)
	for _, b := range rng.Perm(size / block.Size) {
		at := b * block.Size
		if err := d.Write(ctx, []block.Write{{Off: uint64(at), Data: want[at : at+block.Size]}}, false); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 1<<20)
	if _, err := d.TryReadAt(got, 0, nil); !errors.Is(err, block.ErrWouldBlock) {
		t.Errorf("a long read of scattered blocks is done by the reader of the connection: %v", err)
	}
	if _, err := d.TryReadAt(got[:block.Size], 0, nil); err != nil {
		t.Errorf("a short one is not: %v", err)
	}
	for range 50 {
		at := rng.IntN(size - len(got))
		if _, err := d.ReadAt(ctx, got, uint64(at), nil); err != nil || string(got) != string(want[at:at+len(got)]) {
			t.Fatalf("1 MiB at %d: %v, or not what was written", at, err)
		}
	}
	var readers sync.WaitGroup
	for k := range 4 {
		readers.Go(func() {
			p := make([]byte, 1<<20)
			at := k << 20
			for {
				if _, err := d.ReadAt(ctx, p, uint64(at), nil); err != nil {
					return // the store is closed
				}
				if string(p) != string(want[at:at+len(p)]) {
					t.Errorf("1 MiB at %d is not what was written", at)
					return
				}
			}
		})
	}
	time.Sleep(20 * time.Millisecond) // so that reads are under way: whether they are changes nothing that is checked
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	readers.Wait()
}
