package inject

import (
	"bytes"
	"context"
	"errors"
	"math"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// slice is a Device over bytes that counts its calls and does nothing else.
type slice struct {
	data  []byte
	calls int
}

func (s *slice) Size() uint64   { return uint64(len(s.data)) }
func (s *slice) ReadOnly() bool { return false }
func (s *slice) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	return s.ReadAt(context.Background(), p, off, holes)
}
func (s *slice) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	s.calls++
	copy(p, s.data[off:])
	return holes, nil
}
func (s *slice) TryWrite(batch []nbd.Write, fua bool) error {
	return s.Write(context.Background(), batch, fua)
}
func (s *slice) Write(_ context.Context, batch []nbd.Write, _ bool) error {
	s.calls++
	for _, w := range batch {
		copy(s.data[w.Off:], w.Data)
	}
	return nil
}
func (s *slice) Trim(context.Context, block.Range, bool) error       { s.calls++; return nil }
func (s *slice) Zero(context.Context, block.Range, bool, bool) error { s.calls++; return nil }
func (s *slice) Flush(context.Context) error                         { s.calls++; return nil }
func (s *slice) Prefetch(context.Context, block.Range) error         { s.calls++; return nil }

// teller is a slice that has a context.
type teller struct{ slice }

func (*teller) MetaContexts() []string { return []string{nbd.ContextAllocation} }
func (*teller) BlockStatus(_ context.Context, _ string, r block.Range, emit func(uint64, uint32) bool) error {
	emit(r.Len, nbd.StatusZero)
	return nil
}

func mustWrap(t *testing.T, dev nbd.Device, text string) *Device {
	t.Helper()
	f, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(dev, f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// each calls every command once and returns their errors by command.
func each(d nbd.Device) map[nbd.Command]error {
	ctx, r := context.Background(), block.Range{Len: 512}
	p := make([]byte, 512)
	_, read := d.ReadAt(ctx, p, 0, nil)
	return map[nbd.Command]error{
		nbd.CmdRead: read, nbd.CmdWrite: d.Write(ctx, []nbd.Write{{Data: p}}, false), nbd.CmdFlush: d.Flush(ctx), nbd.CmdTrim: d.Trim(ctx, r, false),
		nbd.CmdWriteZeroes: d.Zero(ctx, r, false, false), nbd.CmdCache: d.Prefetch(ctx, r),
		nbd.CmdBlockStatus: d.(nbd.StatusReporter).BlockStatus(ctx, nbd.ContextAllocation, r, func(uint64, uint32) bool { return false }),
	}
}

func TestNoFaultsChangeNothing(t *testing.T) {
	inner := &teller{slice{data: make([]byte, 4096)}}
	d := mustWrap(t, inner, "")
	for c, err := range each(d) {
		if err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
	p := []byte("hello")
	if err := d.TryWrite([]nbd.Write{{Off: 7, Data: p}}, false); err != nil {
		t.Error(err)
	}
	got := make([]byte, 5)
	if _, err := d.TryReadAt(got, 7, nil); err != nil || !bytes.Equal(got, p) {
		t.Errorf("%q, %v", got, err)
	}
	if d.Counts() != (Counts{}) || len(d.MetaContexts()) != 1 {
		t.Errorf("%+v, contexts %q", d.Counts(), d.MetaContexts())
	}
	if names := mustWrap(t, &inner.slice, "").MetaContexts(); names != nil {
		t.Errorf("a device without contexts has %q", names)
	}
}

func TestErrorsStrikeTheirCommandsOnly(t *testing.T) {
	inner := &teller{slice{data: make([]byte, 4096)}}
	d := mustWrap(t, inner, "error=1,errno=ENOSPC,on=write+flush+block-status")
	for c, err := range each(d) {
		struck := c == nbd.CmdWrite || c == nbd.CmdFlush || c == nbd.CmdBlockStatus
		if errors.Is(err, syscall.ENOSPC) != struck {
			t.Errorf("%v: %v", c, err)
		}
	}
	if inner.calls != 4 || d.Counts().Failed != 3 {
		t.Errorf("%d calls came through, %+v", inner.calls, d.Counts())
	}
	if err := d.Set(Faults{ErrorRate: 2}); !errors.Is(err, block.ErrInvalid) || d.Faults().ErrorRate != 1 {
		t.Errorf("invalid faults: %v, now %v", err, d.Faults())
	}
	if err := d.Set(Faults{ErrorRate: 1, Commands: []nbd.Command{nbd.CmdRead}}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(context.Background(), make([]byte, 1), 0, nil); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v, want the default EIO", err)
	}
}

// course returns which of n flushes fail.
func courseOf(t *testing.T, text string, n int) (fails []bool) {
	d := mustWrap(t, &slice{}, text)
	for range n {
		fails = append(fails, d.Flush(context.Background()) != nil)
	}
	return fails
}

func TestSameSeedSameFaults(t *testing.T) {
	const n = 2000
	a, b, other := courseOf(t, "error=0.25,seed=1", n), courseOf(t, "error=0.25,seed=1", n), courseOf(t, "error=0.25,seed=2", n)
	failed, differ := 0, 0
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("request %d: the same seed took another course", i)
		}
		if a[i] {
			failed++
		}
		if a[i] != other[i] {
			differ++
		}
	}
	if math.Abs(float64(failed)/n-0.25) > 0.04 {
		t.Errorf("%d of %d failed, want a quarter", failed, n)
	}
	if differ == 0 {
		t.Error("another seed took the same course")
	}
}

// TestWaitingIsNotDoneInline: the server's reader must not sleep, so what may wait or fail is sent to a worker.
func TestWaitingIsNotDoneInline(t *testing.T) {
	for _, text := range []string{"delay=1h", "jitter=1h", "rate=1", "error=1"} {
		d := mustWrap(t, &slice{data: make([]byte, 4096)}, text)
		if _, err := d.TryReadAt(make([]byte, 1), 0, nil); !errors.Is(err, block.ErrWouldBlock) {
			t.Errorf("%s: read: %v", text, err)
		}
		if err := d.TryWrite([]nbd.Write{{Data: []byte{1}}}, false); !errors.Is(err, block.ErrWouldBlock) {
			t.Errorf("%s: write: %v", text, err)
		}
	}
	d := mustWrap(t, &slice{data: make([]byte, 4096)}, "delay=1h,on=flush")
	if _, err := d.TryReadAt(make([]byte, 1), 0, nil); err != nil {
		t.Errorf("a read that nothing strikes: %v", err)
	}
}

func TestDelaysEndWithTheirContext(t *testing.T) {
	d := mustWrap(t, &slice{data: make([]byte, 4096)}, "delay=1h")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("flush: %v", err)
	}
	if err := d.Write(ctx, []nbd.Write{{Data: []byte{1}}, {Data: []byte{2}}}, false); !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	d = mustWrap(t, &slice{data: make([]byte, 4096)}, "rate=1")
	if err := d.Write(context.Background(), []nbd.Write{{Data: make([]byte, 100)}, {Data: make([]byte, 100)}}, false); err != nil {
		t.Errorf("the first write: %v", err)
	}
	if err := d.Write(ctx, []nbd.Write{{Data: []byte{1}}}, false); !errors.Is(err, context.Canceled) {
		t.Errorf("write beyond the rate: %v", err)
	}
}

// TestBatches: delays of a batch pass together; where writes may fail each has to come alone.
func TestBatches(t *testing.T) {
	inner := &slice{data: make([]byte, 4096)}
	batch := make([]nbd.Write, 100)
	for i := range batch {
		batch[i] = nbd.Write{Off: uint64(i), Data: []byte{1}}
	}
	d := mustWrap(t, inner, "delay=20ms")
	start := time.Now()
	if err := d.Write(context.Background(), batch, false); err != nil || inner.calls != 1 {
		t.Errorf("%v, %d calls", err, inner.calls)
	}
	if took := time.Since(start); took < 20*time.Millisecond {
		t.Errorf("a delay of 20 ms took %v", took)
	}
	if d.Counts().Delayed != 100 {
		t.Errorf("%+v", d.Counts())
	}
	d = mustWrap(t, inner, "error=0.0001")
	if err := d.Write(context.Background(), batch, false); err == nil || inner.calls != 1 || d.Counts().Failed != 0 {
		t.Errorf("%v, %d calls, %+v", err, inner.calls, d.Counts())
	}
}
