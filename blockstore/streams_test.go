package blockstore

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// streamOptions have a log that is much smaller than the streams of these tests, which have room of their own, and let nothing go down for its age.
func streamOptions(t *testing.T, dir string) Options {
	opts := testOptions(t, vfs.Default, dir)
	opts.StreamBytes, opts.streamFrom, opts.DestageAfter = 1<<30, 8<<20, time.Hour
	return opts
}

// writeStream writes pieces of 1 MiB one after the other, eight at a time, and returns how long the slowest took.
func writeStream(t *testing.T, d *Device, data []byte) (slowest time.Duration) {
	t.Helper()
	var writers sync.WaitGroup
	var mu sync.Mutex
	for w := range 8 {
		writers.Go(func() {
			for off := w << 20; off < len(data); off += 8 << 20 {
				began := time.Now()
				if err := d.Write(context.Background(), []block.Write{{Off: uint64(off), Data: data[off : off+1<<20]}}, false); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				slowest = max(slowest, time.Since(began))
				mu.Unlock()
			}
		})
	}
	writers.Wait()
	return slowest
}

// A stream of four times the log's cap is acknowledged while hardly anything of it goes down, a small writer of another volume does not meet a full log beside it, and when it is over it goes down by itself.
func TestStreamsBeyondTheLog(t *testing.T) {
	s := openTest(t, streamOptions(t, t.TempDir()))
	d, other := createTest(t, s, "v", 160<<20), createTest(t, s, "other", 64<<20)
	data := guestData(rand.New(rand.NewPCG(1, 2)), 160<<20)
	small := guestData(rand.New(rand.NewPCG(1, 3)), block.Size)
	var beside sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	written := 0
	beside.Go(func() {
		for ; ctx.Err() == nil; written++ {
			if err := other.Write(ctx, []block.Write{{Off: uint64(written%1000) * block.Size, Data: small}}, false); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Millisecond) // the pace of the small writer
		}
	})
	slowest := writeStream(t, d, data)
	u, fill := s.log.Usage(), s.space.fill.Load()
	stop()
	beside.Wait()
	t.Logf("the slowest request took %v; %d MiB of the stream are in the log, whose fill is %d of 1000; %d small writes beside it", slowest, u.Stream>>20, fill, written)
	if u.Stream < 128<<20 {
		t.Errorf("%d B of a stream of %d B are in the log: it waited for destage", u.Stream, len(data))
	}
	if fill >= fillSoft {
		t.Errorf("the log is at %d of 1000 beside a stream that has room of its own", fill)
	}
	expect(t, d, 0, data)
	for deadline := time.Now().Add(time.Minute); s.undestaged() > 24<<20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("a minute after the stream: %+v, %d B not destaged", s.log.Usage(), s.undestaged())
		}
	}
	expect(t, d, 0, data)
}

// What streams have left in the log is there after a restart, counted as theirs, and goes down. (Kills of the process are crash_kill_test.go's.)
func TestStreamsAfterRestart(t *testing.T) {
	dir := t.TempDir()
	opts := streamOptions(t, dir)
	s := openTest(t, opts)
	d := createTest(t, s, "v", 96<<20)
	data := guestData(rand.New(rand.NewPCG(5, 2)), 96<<20)
	writeStream(t, d, data)
	was := s.log.Usage().Stream
	if was < 64<<20 {
		t.Fatalf("%d B of the stream are in the log", was)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	if now := s.log.Usage().Stream; now < was || now > was+opts.LogFileBytes {
		t.Errorf("%d B of streams are in the log, %d B before", now, was)
	}
	d = deviceTest(t, s, "v", "")
	expect(t, d, 0, data)
	settleTest(t, s)
	expect(t, d, 0, data)
	if u := s.log.Usage(); u.Stream > 0 {
		t.Errorf("settled, and still %d B of streams", u.Stream)
	}
}

// The room of streams is bounded: with little of it a stream waits for destage, as it did without.
func TestStreamsBeyondTheirRoom(t *testing.T) {
	opts := streamOptions(t, t.TempDir())
	opts.StreamBytes = 32 << 20
	s := openTest(t, opts)
	d := createTest(t, s, "v", 160<<20)
	data := guestData(rand.New(rand.NewPCG(7, 2)), 160<<20)
	most := int64(0)
	ctx, stop := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			most = max(most, s.log.Usage().Live)
		}
	})
	writeStream(t, d, data)
	stop()
	watch.Wait()
	if bound := opts.LogCapBytes + opts.StreamBytes; most > bound {
		t.Errorf("the log grew to %d B, its cap and the streams' room are %d B", most, bound)
	}
	settleTest(t, s)
	expect(t, d, 0, data)
}

// What is left of a stream goes down although most of it was rewritten at random right after, before the log has to be emptied: else that would have to wait for all of it.
func TestRewrittenStreamGoesDown(t *testing.T) {
	s := openTest(t, streamOptions(t, t.TempDir()))
	d := createTest(t, s, "v", 128<<20)
	rng := rand.New(rand.NewPCG(9, 2))
	data := guestData(rng, 128<<20)
	writeStream(t, d, data)
	if s.log.Usage().Stream < 96<<20 {
		t.Fatalf("not a stream: %+v", s.log.Usage())
	}
	for range 4000 { // 16 MiB: far from filling the log
		off := rng.IntN(len(data)/block.Size) * block.Size
		copy(data[off:off+block.Size], guestData(rng, block.Size))
		writeTest(t, d, uint64(off), data[off:off+block.Size])
	}
	for deadline := time.Now().Add(time.Minute); s.undestaged() > 32<<20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("a minute after the stream %d B are not destaged: %+v", s.undestaged(), s.log.Usage())
		}
	}
	expect(t, d, 0, data)
	settleTest(t, s)
	expect(t, d, 0, data)
}

// Once a stream has gone down, heat decides again: what is written to the file that its last records lie in is not taken for it.
func TestAfterStreamsHeatDecides(t *testing.T) {
	opts := streamOptions(t, t.TempDir())
	opts.LogFileBytes = 8 << 20
	s := openTest(t, opts)
	d := createTest(t, s, "v", 64<<20)
	data := guestData(rand.New(rand.NewPCG(11, 2)), 36<<20)
	writeStream(t, d, data)
	settleTest(t, s)
	if u := s.log.Usage(); u.Stream == 0 {
		t.Fatalf("nothing of the stream is in the file that is being filled: %+v", u)
	}
	for i := range 100 {
		writeTest(t, d, uint64(48<<20+i*block.Size), data[:block.Size])
		time.Sleep(20 * time.Millisecond) // the pace of a guest that rests, over several ticks of destage
	}
	if left := s.undestaged(); left != 100*block.Size {
		t.Errorf("%d B are in the log alone, of %d B that were written for the first time and are young", left, 100*block.Size)
	}
}
