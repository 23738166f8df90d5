package blockstore

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// What passes a bucket in a time that is simulated is what its limit allows, whatever the sizes of requests are, and a burst after an idle time.
func TestBucketHoldsItsLimit(t *testing.T) {
	const perSecond, span = 100_000, int64(20 * time.Second)
	for _, size := range []int64{1, 7, 512, 99_999} {
		b := newBucket(perSecond, 100*time.Millisecond)
		passed := int64(0)
		for now := int64(0); now < span; {
			if wait := b.take(now, size); wait > 0 {
				now += wait
			}
			passed += size
		}
		if want := perSecond * float64(span) / 1e9; math.Abs(float64(passed)-want) > 2*float64(size) {
			t.Errorf("requests of %d: %d passed, want about %.0f", size, passed, want)
		}
	}
	b := newBucket(perSecond, 100*time.Millisecond)
	burst := 0
	for b.take(span, 1) <= 0 {
		burst++
	}
	if want := perSecond/10 + 1; burst != want {
		t.Errorf("%d at once after an idle time, want %d", burst, want)
	}
	b = newBucket(1, time.Second)
	for range 100 {
		b.take(0, 1<<62)
	}
	if wait := b.take(0, 1); wait < int64(time.Hour) {
		t.Errorf("after more than can be paid, one waits %d ns", wait)
	}
	b = bucket{}
	if wait := b.take(0, 1<<40); wait > 0 {
		t.Error("no limit, but a wait")
	}
}

// Limits apply to reads and writes of the volume, in both of their ways, to nothing else, and give way at once when they are replaced.
func TestVolumeLimits(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d, other := createTest(t, s, "v", 1<<20), createTest(t, s, "other", 1<<20)
	ctx := context.Background()
	p := make([]byte, block.Size)
	one := []block.Write{{Data: p}}
	writeTest(t, d, 0, p)
	if _, err := s.CreateSnapshot(ctx, "v", "s"); err != nil {
		t.Fatal(err)
	}
	snap := deviceTest(t, s, "v", "s")
	limits := VolumeLimits{ReadIOPS: 1, WriteIOPS: 1, Burst: time.Nanosecond}
	if err := s.SetVolumeLimits("v", limits); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Volume("v"); err != nil || got.Limits != limits {
		t.Errorf("limits in force: %+v, %v", got.Limits, err)
	}
	if err := errors.Join(d.TryWrite(one, false), second(d.TryReadAt(p, 0, nil))); err != nil {
		t.Fatalf("the first request of each kind: %v", err)
	}
	for what, err := range map[string]error{"write": d.TryWrite(one, false), "read": second(d.TryReadAt(p, 0, nil))} {
		if err != block.ErrWouldBlock {
			t.Errorf("the second %s: %v", what, err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	for what, err := range map[string]error{
		"write": d.Write(short, one, false), "read": second(d.ReadAt(short, p, 0, nil)),
		"trim": d.Trim(short, block.Range{Len: block.Size}, false), "zero": d.Zero(short, block.Range{Len: block.Size}, false, false),
	} {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a %s that has to wait: %v", what, err)
		}
	}
	for range 100 {
		if err := errors.Join(other.TryWrite(one, false), second(other.TryReadAt(p, 0, nil)), second(snap.TryReadAt(p, 0, nil)), d.Flush(ctx)); err != nil {
			t.Fatalf("something that is not limited: %v", err)
		}
	}
	released := make(chan error)
	for range 10 {
		go func() { released <- d.Write(ctx, one, false) }() // the last would wait for ten seconds
	}
	if err := s.SetVolumeLimits("v", VolumeLimits{}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := <-released; err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []VolumeLimits{{Burst: time.Hour}, {Burst: -1}, {ReadIOPS: 1 << 60}, {WriteBytes: 100}} {
		if err := s.SetVolumeLimits("v", bad); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := s.SetVolumeLimits("nope", limits); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("limits of no volume: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// What a volume has in the log alone is counted as its own.
func TestUndestagedOfAVolume(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.DestageAfter = time.Hour
	s := openTest(t, opts)
	d := createTest(t, s, "v", 1<<20)
	createTest(t, s, "other", 1<<20)
	writeTest(t, d, 0, make([]byte, 64<<10))
	writeTest(t, d, 0, make([]byte, 16<<10)) // the same blocks again
	for _, v := range s.Volumes() {
		want := map[string]uint64{"v": 64 << 10}[v.Name]
		one, err := s.Volume(v.Name)
		if v.UndestagedBytes != want || one.UndestagedBytes != want || err != nil {
			t.Errorf("%s: %d and %d bytes, want %d; %v", v.Name, v.UndestagedBytes, one.UndestagedBytes, want, err)
		}
	}
	settleTest(t, s)
	if v, err := s.Volume("v"); v.UndestagedBytes != 0 || err != nil {
		t.Errorf("settled: %d, %v", v.UndestagedBytes, err)
	}
}

// The first large request after an idle time passes no more than a burst ahead of its limit: what is above waits, and what follows pays its debt.
func TestLargeRequestsWait(t *testing.T) {
	const mib = int64(1 << 20)
	for way, request := range map[string]int64{"take": 32 * mib, "ready": 600 << 10} {
		f := flow{bytes: newBucket(uint64(4*mib), 100*time.Millisecond)}
		now := int64(time.Hour) // idle until now
		passed, began := int64(0), now
		for range 20 {
			if way == "take" {
				now += max(0, f.take(now, 1, request))
			} else {
				for !f.ready(now, request) {
					now += int64(time.Millisecond)
				}
				f.take(now, 1, request)
			}
			passed += request
			if most := 4*mib*(now-began)/int64(time.Second) + 4*mib/10*2 + mib/10; passed > most {
				t.Fatalf("%s: %d B after %v, want at most %d", way, passed, time.Duration(now-began), most)
			}
		}
		if least := 4 * mib * (now - began) / int64(time.Second) * 9 / 10; passed < least {
			t.Errorf("%s: %d B after %v, want about %d", way, passed, time.Duration(now-began), least)
		}
	}
	f := flow{bytes: newBucket(uint64(4*mib), 100*time.Millisecond)}
	if f.ready(int64(time.Hour), 32*mib) {
		t.Error("a request of many bursts goes on without a wait")
	}
	for range 6 { // what a burst allows goes on at once
		if wait := f.take(int64(time.Hour), 1, 64<<10); wait > 0 {
			t.Errorf("a small request waits %v", time.Duration(wait))
		}
	}
}
