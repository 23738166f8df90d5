package live

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// How far a restart of the daemon may fall back, so that little is pulled again: whichever comes first.
const (
	keepBytes = 256 << 20
	keepEvery = 5 * time.Second
)

// Pulling is what Pull needs of its caller.
type Pulling struct {
	Device Device // the volume itself, not wrapped
	Stream *transfer.LiveReader
	// Want tells the other side that a range is waited for. It is called by one goroutine. When it fails it has made the stream fail too.
	Want func(block.Range) error
	// Keep makes it durable that everything before an offset has come. The content is durable before.
	Keep func(ctx context.Context, reachedBytes uint64) error
}

// Pull takes content until all of it has come, and then makes it durable. It returns earlier when the stream ends or fails, or ctx ends and with it the stream. One caller at a time pulls: for others it is block.ErrInUse.
func (r *Restore) Pull(ctx context.Context, p Pulling) error {
	if got := p.Stream.Size(); got != r.content {
		return fmt.Errorf("the content has %d bytes, of which the stream has %d: %w", r.content, got, block.ErrInvalid)
	}
	me, err := r.enter()
	if err != nil {
		return err
	}
	defer r.exit()
	var teller sync.WaitGroup
	defer teller.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	teller.Go(func() { r.tell(ctx, me, p.Want) })
	return r.take(ctx, p)
}

// tell passes on what is waited for, until the other side cannot be told any more.
func (r *Restore) tell(ctx context.Context, me *puller, want func(block.Range) error) {
	for {
		select {
		case <-me.asked:
		case <-ctx.Done():
			return
		}
		for x, ok := r.next(); ok; x, ok = r.next() {
			if want(x) != nil {
				return
			}
		}
	}
}

// take takes frames until all has come.
func (r *Restore) take(ctx context.Context, p Pulling) error {
	var buffer, scratch []byte
	lend := func(n int) []byte {
		if cap(buffer) < n+block.Size {
			buffer = make([]byte, n, n+block.Size)
		}
		return buffer[:n]
	}
	kept, keptAt := r.durable.Load(), time.Now()
	for r.reached.Load() < r.content {
		f, err := p.Stream.Next(lend)
		if err != nil {
			return err
		}
		x := block.Range{Off: f.Off, Len: f.Length}
		switch f.Kind {
		case transfer.LiveData:
			if cap(scratch) < cap(buffer) {
				scratch = make([]byte, cap(buffer))
			}
			if err := r.put(ctx, p.Device, f.Off, f.Data, scratch); err != nil {
				return err
			}
			r.answered(x, nil)
		case transfer.LiveZero:
			if err := r.putZero(ctx, p.Device, x); err != nil {
				return err
			}
			r.answered(x, nil)
		case transfer.LiveFailed:
			r.answered(x, fmt.Errorf("restore %d B at %d: %s: %w", x.Len, x.Off, f.Message, block.ErrCorrupt))
		case transfer.LiveReached:
			if f.Off > r.reached.Load() {
				r.advance(f.Off)
			}
		}
		if reached := r.reached.Load(); reached < r.content && (reached-kept >= keepBytes || reached > kept && time.Since(keptAt) >= keepEvery) {
			if err := r.keep(ctx, p, reached); err != nil {
				return err
			}
			kept, keptAt = reached, time.Now()
		}
	}
	return p.Device.Flush(ctx)
}

// keep makes it durable that everything before an offset has come.
func (r *Restore) keep(ctx context.Context, p Pulling, reached uint64) error {
	if err := p.Device.Flush(ctx); err != nil {
		return err
	}
	if err := p.Keep(ctx, reached); err != nil {
		return err
	}
	r.durable.Store(reached)
	return nil
}

// put writes what was pulled to the blocks that have not come. Data has room behind it for the rest of a block.
func (r *Restore) put(ctx context.Context, d Device, off uint64, data, scratch []byte) error {
	size := d.Size()
	if end := off + uint64(len(data)); end == r.content && end < size { // the volume ends with its sector
		clear(data[len(data) : uint64(len(data))+size-end : cap(data)])
		data = data[:uint64(len(data))+size-end]
	}
	x := block.Range{Off: off, Len: uint64(len(data))}
	if x.Off > size || x.Len > size-x.Off {
		return fmt.Errorf("pulled %d B at %d of %d B: %w", x.Len, x.Off, size, block.ErrOutOfRange)
	}
	release, err := r.claims.take(ctx, true, outward(x))
	if err != nil {
		return err
	}
	defer release()
	missing, err := r.missing(ctx, d, x, scratch)
	if err != nil {
		return err
	}
	var batch []nbd.Write
	var zeroes []block.Range
	for _, m := range missing {
		open := false // the last write ends where this block begins
		for at := m.Off; at < m.End(); at += block.Size {
			n := min(block.Size, m.End()-at)
			piece := data[at-off : at-off+n]
			switch {
			case isZero(piece):
				zeroes = append(zeroes, block.Range{Off: at, Len: n})
				open = false
			case open:
				last := &batch[len(batch)-1]
				last.Data = last.Data[:len(last.Data)+len(piece)]
			default:
				batch = append(batch, nbd.Write{Off: at, Data: piece})
				open = true
			}
		}
	}
	if len(batch) > 0 {
		if err := d.Write(ctx, batch, false); err != nil {
			return err
		}
	}
	if len(zeroes) == 0 || !r.wanted(x) {
		return nil // `reached` says it of them later
	}
	return r.mark(ctx, zeroes)
}

// putZero notes that blocks read as zeroes that have not come.
func (r *Restore) putZero(ctx context.Context, d Device, x block.Range) error {
	if x.End() > r.content {
		return fmt.Errorf("pulled %d B of zeroes at %d of %d B: %w", x.Len, x.Off, r.content, block.ErrOutOfRange)
	}
	release, err := r.claims.take(ctx, true, outward(x))
	if err != nil {
		return err
	}
	defer release()
	return r.mark(ctx, []block.Range{outward(x)})
}

// missing returns which blocks of a range have not come. The range is claimed, so they stay so.
func (r *Restore) missing(ctx context.Context, d Device, x block.Range, scratch []byte) ([]block.Range, error) {
	var had come
	r.look(&had, x.Off, x.Len)
	if _, err := d.ReadAt(ctx, scratch[:x.Len], x.Off, nil); err != nil {
		return nil, err
	}
	return had.missing(scratch[:x.Len], x.Off), nil
}
