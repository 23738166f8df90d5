package inject

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// Device is a device with faults. All methods may be called at once from any number of goroutines.
type Device struct {
	nbd.Device // what is wrapped; its owner closes it

	course atomic.Pointer[course]

	delayed, failed atomic.Uint64
}

// course is one setting of the faults, and how far it has come.
type course struct {
	faults Faults
	pace   pace
	struck atomic.Uint64 // requests so far
}

// New wraps a device. Faults that Validate refuses are an error.
func New(dev nbd.Device, f Faults) (*Device, error) {
	d := &Device{Device: dev}
	return d, d.Set(f)
}

// Set changes the faults of requests to come and begins a new course. Faults that Validate refuses change nothing.
func (d *Device) Set(f Faults) error {
	if err := f.Validate(); err != nil {
		return err
	}
	d.course.Store(&course{faults: f, pace: pace{perSecond: f.BytesPerSecond}})
	return nil
}

// Faults returns what was set.
func (d *Device) Faults() Faults { return d.course.Load().faults }

// Counts are the requests that were struck since New.
type Counts struct {
	Delayed, Failed uint64
}

// Counts returns them.
func (d *Device) Counts() Counts {
	return Counts{Delayed: d.delayed.Load(), Failed: d.failed.Load()}
}

// quick reports whether a command goes to the device untouched, so that it may be served without waiting.
func (d *Device) quick(c nbd.Command) bool {
	f := &d.course.Load().faults
	return !f.active() || !f.strikes(c)
}

// strike does to a request of so many bytes what the faults want, and returns the error that it shall have.
func (d *Device) strike(ctx context.Context, c nbd.Command, bytes uint64) error {
	course := d.course.Load()
	f := &course.faults
	if !f.active() || !f.strikes(c) {
		return nil
	}
	chance := newChance(f.Seed, course.struck.Add(1))
	if wait := f.wait(chance); wait > 0 {
		d.delayed.Add(1)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	if (c == nbd.CmdRead || c == nbd.CmdWrite) && f.BytesPerSecond != 0 {
		if err := course.pace.admit(ctx, bytes); err != nil {
			return err
		}
	}
	if chance.share() >= f.ErrorRate {
		return nil
	}
	d.failed.Add(1)
	errno := f.Errno
	if errno == 0 {
		errno = syscall.EIO
	}
	return fmt.Errorf("injected into %v: %w", c, errno)
}

// wait returns how long a request is kept back.
func (f *Faults) wait(c *chance) time.Duration {
	return f.Delay + time.Duration(c.share()*float64(f.Jitter))
}

func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// chance is what befalls one request: a sequence that its number and the seed decide (SplitMix64, Steele et al., OOPSLA 2014), whoever else
// asks meanwhile.
type chance uint64

func newChance(seed, number uint64) *chance {
	c := chance(seed ^ number*0xbf58476d1ce4e5b9)
	return &c
}

// share returns the next number of the sequence, at least 0 and below 1.
func (c *chance) share() float64 {
	*c += 0x9e3779b97f4a7c15
	z := uint64(*c)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	return float64(z>>11) * math.Pow(2, -53)
}

// TryReadAt implements nbd.Device.
func (d *Device) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if !d.quick(nbd.CmdRead) {
		return holes, block.ErrWouldBlock
	}
	return d.Device.TryReadAt(p, off, holes)
}

// ReadAt implements nbd.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if err := d.strike(ctx, nbd.CmdRead, uint64(len(p))); err != nil {
		return holes, err
	}
	return d.Device.ReadAt(ctx, p, off, holes)
}

// TryWrite implements nbd.Device.
func (d *Device) TryWrite(batch []nbd.Write, fua bool) error {
	if !d.quick(nbd.CmdWrite) {
		return block.ErrWouldBlock
	}
	return d.Device.TryWrite(batch, fua)
}

// errBatch makes the server send the writes of a batch one by one.
var errBatch = errors.New("each write of a batch fails alone")

// Write implements nbd.Device. The delays of a batch pass at the same time, as those of requests do that come apart. Where writes may fail, the
// server has to send them one by one, and their delays add up.
func (d *Device) Write(ctx context.Context, batch []nbd.Write, fua bool) error {
	var err error
	switch {
	case len(batch) == 1:
		err = d.strike(ctx, nbd.CmdWrite, uint64(len(batch[0].Data)))
	case !d.quick(nbd.CmdWrite):
		err = d.strikeBatch(ctx, batch)
	}
	if err != nil {
		return err
	}
	return d.Device.Write(ctx, batch, fua)
}

func (d *Device) strikeBatch(ctx context.Context, batch []nbd.Write) error {
	course := d.course.Load()
	f := &course.faults
	if f.ErrorRate > 0 {
		return errBatch
	}
	longest, bytes := time.Duration(0), uint64(0)
	for _, w := range batch {
		longest = max(longest, f.wait(newChance(f.Seed, course.struck.Add(1))))
		bytes += uint64(len(w.Data))
	}
	if longest > 0 {
		d.delayed.Add(uint64(len(batch)))
		if err := sleep(ctx, longest); err != nil {
			return err
		}
	}
	if f.BytesPerSecond == 0 {
		return nil
	}
	return course.pace.admit(ctx, bytes)
}

// Trim implements nbd.Device.
func (d *Device) Trim(ctx context.Context, r block.Range, fua bool) error {
	if err := d.strike(ctx, nbd.CmdTrim, 0); err != nil {
		return err
	}
	return d.Device.Trim(ctx, r, fua)
}

// Zero implements nbd.Device.
func (d *Device) Zero(ctx context.Context, r block.Range, noHole, fua bool) error {
	if err := d.strike(ctx, nbd.CmdWriteZeroes, 0); err != nil {
		return err
	}
	return d.Device.Zero(ctx, r, noHole, fua)
}

// Flush implements nbd.Device.
func (d *Device) Flush(ctx context.Context) error {
	if err := d.strike(ctx, nbd.CmdFlush, 0); err != nil {
		return err
	}
	return d.Device.Flush(ctx)
}

// Prefetch implements nbd.Device.
func (d *Device) Prefetch(ctx context.Context, r block.Range) error {
	if err := d.strike(ctx, nbd.CmdCache, 0); err != nil {
		return err
	}
	return d.Device.Prefetch(ctx, r)
}

// Limited implements nbd.Paced.
func (d *Device) Limited() bool {
	p, ok := d.Device.(nbd.Paced)
	return ok && p.Limited()
}

// AwaitRate implements nbd.Paced.
func (d *Device) AwaitRate(ctx context.Context, write bool, n int64) error {
	if p, ok := d.Device.(nbd.Paced); ok {
		return p.AwaitRate(ctx, write, n)
	}
	return nil
}

// FlushAhead implements nbd.AheadFlusher. Where flushes are struck none is done ahead, so that each one of the client's meets what it would.
func (d *Device) FlushAhead(ctx context.Context) {
	if a, ok := d.Device.(nbd.AheadFlusher); ok && d.quick(nbd.CmdFlush) {
		a.FlushAhead(ctx)
	}
}

// MetaContexts implements nbd.StatusReporter for a device that does; others have none.
func (d *Device) MetaContexts() []string {
	if r, ok := d.Device.(nbd.StatusReporter); ok {
		return r.MetaContexts()
	}
	return nil
}

// BlockStatus implements nbd.StatusReporter.
func (d *Device) BlockStatus(ctx context.Context, name string, r block.Range, emit func(length uint64, status uint32) bool) error {
	reporter, ok := d.Device.(nbd.StatusReporter)
	if !ok {
		return fmt.Errorf("context %q: %w", name, block.ErrNotFound)
	}
	if err := d.strike(ctx, nbd.CmdBlockStatus, 0); err != nil {
		return err
	}
	return reporter.BlockStatus(ctx, name, r, emit)
}
