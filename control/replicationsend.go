package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/throttle"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// zeroUnit is the aligned unit, in bytes, in which zeroes in data are told as such.
const zeroUnit = 64 << 10

// sending counts what a cycle sends.
type sending struct {
	total atomic.Uint64 // bytes of data in the point, as far as that is known
	done  atomic.Uint64 // of these
	wire  atomic.Uint64 // bytes sent
}

// sendPoint sends what differs between two points of a volume, from an offset on.
func (c *Control) sendPoint(ctx context.Context, volume, base, point string, from uint64, w io.Writer, progress *sending) (err error) {
	device, err := c.engine.OpenDevice(volume, pointName(point))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	size := device.Size()
	total := uint64(0)
	if err := c.changesOf(ctx, device, volume, base, point, from, func(change blockstore.Change) error {
		if change.Kind == blockstore.ChangeData {
			total += change.Len
		}
		return nil
	}); err != nil {
		return err
	}
	progress.total.Store(total)
	stream, err := replica.NewWriter(countingWriter{w, &progress.wire}, size)
	if err != nil {
		return err
	}
	if err := c.sendChanges(ctx, device, stream, progress, func(ctx context.Context, tell func(blockstore.Change) error) error {
		return c.changesOf(ctx, device, volume, base, point, from, tell)
	}); err != nil {
		return errors.Join(err, stream.Fail(err.Error()))
	}
	return stream.End()
}

// readAhead is how many pieces are read before they are sent.
const readAhead = 3

// changed is a piece that was read, or, without data, a range of zeroes.
type changed struct {
	off, length uint64
	data        []byte
}

// sendChanges sends what changes tells, and reads while it sends.
func (c *Control) sendChanges(ctx context.Context, device Device, stream *replica.Writer, progress *sending, changes func(context.Context, func(blockstore.Change) error) error) error {
	ctx, cancel := context.WithCancel(ctx)
	free, ready, result := make(chan []byte, readAhead), make(chan changed, readAhead), make(chan error, 1)
	for range readAhead {
		free <- nil // allocated when it is first used
	}
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	reader.Go(func() {
		defer close(ready)
		result <- changes(ctx, func(change blockstore.Change) error { return readChange(ctx, device, change, free, ready) })
	})
	for p := range ready {
		err := error(nil)
		if p.data == nil {
			err = stream.Zero(p.off, p.length)
		} else {
			err = sendData(stream, p.off, p.data)
			progress.done.Add(p.length)
		}
		if err != nil {
			return err
		}
		if p.data != nil {
			free <- p.data[:cap(p.data)]
		}
	}
	return <-result
}

// readChange reads what changed in one range, a piece after the other.
func readChange(ctx context.Context, device Device, change blockstore.Change, free chan []byte, ready chan<- changed) error {
	put := func(p changed) error {
		select {
		case ready <- p:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if change.Kind != blockstore.ChangeData {
		return put(changed{off: change.Off, length: change.Len})
	}
	for change.Len > 0 {
		var buffer []byte
		select {
		case buffer = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if buffer == nil {
			buffer = make([]byte, replica.MaxPiece)
		}
		n := min(change.Len, replica.MaxPiece-change.Off%replica.MaxPiece)
		if _, err := device.ReadAt(ctx, buffer[:n], change.Off, nil); err != nil {
			return err
		}
		if err := put(changed{change.Off, n, buffer[:n]}); err != nil {
			return err
		}
		change.Off, change.Len = change.Off+n, change.Len-n
	}
	return nil
}

// sendData sends a piece; aligned units of zeroes in it as such.
func sendData(w *replica.Writer, off uint64, p []byte) error {
	for len(p) > 0 {
		n, zero := run(off, p)
		err := error(nil)
		if zero {
			err = w.Zero(off, uint64(n))
		} else {
			err = w.Data(off, p[:n])
		}
		if err != nil {
			return err
		}
		off, p = off+uint64(n), p[n:]
	}
	return nil
}

var zeroes [zeroUnit]byte

// run returns how many bytes at the beginning of p, in whole units, are all zeroes, or are none of them.
func run(off uint64, p []byte) (n int, zero bool) {
	for n < len(p) {
		unit := p[n:min(len(p), n+zeroUnit-int((off+uint64(n))%zeroUnit))]
		is := bytes.Equal(unit, zeroes[:len(unit)])
		if n > 0 && is != zero {
			break
		}
		n, zero = n+len(unit), is
	}
	return n, zero
}

// changesOf tells, from an offset on and in order, what differs between two points of a volume. device is the second one. From the empty point everything differs that is there.
func (c *Control) changesOf(ctx context.Context, device Device, volume, base, point string, from uint64, tell func(blockstore.Change) error) error {
	var failed error
	clipped := func(change blockstore.Change) bool {
		if end := change.Off + change.Len; end <= from {
			return true
		} else if change.Off < from {
			change.Off, change.Len = from, end-from
		}
		failed = tell(change)
		return failed == nil
	}
	if base == replica.Empty {
		return errors.Join(wholeOf(ctx, device, from, clipped), failed)
	}
	err := c.engine.Diff(ctx, blockstore.StateName{Volume: volume, Snapshot: pointName(base)}, blockstore.StateName{Volume: volume, Snapshot: pointName(point)}, clipped)
	return errors.Join(err, failed)
}

// wholeOf tells what is there, as data.
func wholeOf(ctx context.Context, device Device, from uint64, tell func(blockstore.Change) bool) error {
	size := device.Size()
	for at, more := from, true; at < size && more; {
		var runs []blockstore.Change // told when no lock of the engine is held
		if err := device.Depths(ctx, block.Range{Off: at, Len: size - at}, func(n uint64, depth uint32) bool {
			n = min(n, size-at)
			if depth != 0 {
				runs = append(runs, blockstore.Change{Off: at, Len: n, Kind: blockstore.ChangeData})
			}
			at += n
			return len(runs) < 1024
		}); err != nil {
			return err
		}
		for _, change := range runs {
			if more = tell(change); !more {
				break
			}
		}
	}
	return nil
}

// countingWriter counts what it writes.
type countingWriter struct {
	w     io.Writer
	count *atomic.Uint64
}

// Write implements io.Writer.
func (c countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.count.Add(uint64(n))
	return n, err
}

// limitedWriter keeps what it writes within a rate.
type limitedWriter struct {
	ctx    context.Context // of the stream, which is one call
	w      io.Writer
	bucket *throttle.Bucket
}

// Write implements io.Writer.
func (l limitedWriter) Write(p []byte) (done int, err error) {
	for done < len(p) {
		piece := p[done:min(len(p), done+l.bucket.Piece())]
		if err := l.bucket.Take(l.ctx, len(piece)); err != nil {
			return done, err
		}
		n, err := l.w.Write(piece)
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}
