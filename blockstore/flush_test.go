package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestFlushCoversAll: a flush makes durable what was written, trimmed and zeroed, of whichever volume through whichever device, and what control did; it syncs nothing when all that is durable.
func TestFlushCoversAll(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.SyncEvery, opts.DestageAfter = time.Hour, time.Hour
	s := openTest(t, opts)
	const size = 1 << 20
	a, other := createTest(t, s, "a", size), createTest(t, s, "b", size)
	again := deviceTest(t, s, "a", "")
	p := guestData(rand.New(rand.NewPCG(1, 1)), block.Size)
	ctx := context.Background()
	whole := block.Range{Len: size}
	flush := func(what string, wantSync bool) {
		t.Helper()
		last, _ := s.log.Last()
		before := s.log.Usage().Syncs
		if err := a.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		durable, _ := s.log.Durable()
		if synced := s.log.Usage().Syncs != before; synced != wantSync || wantSync && durable < last {
			t.Errorf("%s: synced %v, durable up to %d of %d", what, synced, durable, last)
		}
	}
	flush("new volumes", true)
	flush("nothing", false)
	writeTest(t, other, 0, p)
	flush("a write of another volume", true)
	if err := a.TryWrite([]block.Write{{Off: 4096, Data: p}}, false); err != nil {
		t.Fatal(err)
	}
	flush("a write", true)
	writeTest(t, again, 100, p)
	flush("a write in parts of blocks, through another device", true)
	if err := a.Trim(ctx, whole, false); err != nil {
		t.Fatal(err)
	}
	flush("a trim", true)
	if err := a.Zero(ctx, block.Range{Off: 10, Len: 20}, false, false); err != nil {
		t.Fatal(err)
	}
	flush("a zeroing inside a block", true)
	if err := s.ResizeVolume(ctx, "b", 2*size); err != nil {
		t.Fatal(err)
	}
	flush("an operation on another volume", true)
	writeTest(t, a, 0, p)
	before := s.log.Usage().Syncs
	a.FlushAhead(ctx)
	if s.log.Usage().Syncs != before+1 {
		t.Error("flushing ahead did not sync once")
	}
	flush("what was flushed ahead", false)
	writeTest(t, other, 8192, p)
	flush("a write of another volume after that", true)
}
