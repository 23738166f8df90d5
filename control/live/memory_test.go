package live

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// memory is a volume that forgets at once what the engine forgets in time: whether a block of zeroes was ever written.
type memory struct {
	size uint64

	mu      sync.Mutex
	blocks  map[uint64][]byte // that are not zeroes
	writes  int
	flushes int
}

func newMemory(size uint64) *memory { return &memory{size: size, blocks: map[uint64][]byte{}} }

func (m *memory) Size() uint64   { return m.size }
func (m *memory) ReadOnly() bool { return false }
func (m *memory) Close() error   { return nil }

func (m *memory) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	return m.ReadAt(context.Background(), p, off, holes)
}

func (m *memory) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if off > m.size || uint64(len(p)) > m.size-off {
		return holes, block.ErrOutOfRange
	}
	defer runtime.Gosched() // as an engine may be slow to return
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(p) > 0 {
		in := off % block.Size
		n := min(uint64(len(p)), block.Size-in)
		if b := m.blocks[off/block.Size]; b != nil {
			copy(p[:n], b[in:])
		} else if clear(p[:n]); off/block.Size%3 != 0 { // the engine stores some of what is zero, beside data, and does not call that a hole
			holes = appendHoles(holes, []block.Range{{Off: off, Len: n}})
		}
		p, off = p[n:], off+n
	}
	return holes, nil
}

func (m *memory) TryWrite(batch []nbd.Write, fua bool) error {
	return m.Write(context.Background(), batch, fua)
}

func (m *memory) Write(_ context.Context, batch []nbd.Write, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	for _, w := range batch {
		if w.Off > m.size || uint64(len(w.Data)) > m.size-w.Off {
			return block.ErrOutOfRange
		}
		for at := 0; at < len(w.Data); {
			number, in := (w.Off+uint64(at))/block.Size, (w.Off+uint64(at))%block.Size
			fresh := make([]byte, block.Size)
			copy(fresh, m.blocks[number])
			at += copy(fresh[in:], w.Data[at:])
			m.blocks[number] = fresh
			if isZero(fresh) {
				delete(m.blocks, number)
			}
		}
	}
	return nil
}

func (m *memory) Trim(ctx context.Context, r block.Range, fua bool) error {
	return m.Zero(ctx, inward(r, m.size), false, fua)
}

func (m *memory) Zero(ctx context.Context, r block.Range, _, fua bool) error {
	if r.Len == 0 {
		return nil
	}
	return m.Write(ctx, []nbd.Write{{Off: r.Off, Data: make([]byte, r.Len)}}, fua)
}

func (m *memory) Flush(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	return nil
}

func (m *memory) FlushAhead(context.Context)                   {}
func (m *memory) Prefetch(context.Context, block.Range) error  { return nil }
func (m *memory) Limited() bool                                { return false }
func (m *memory) AwaitRate(context.Context, bool, int64) error { return nil }
func (m *memory) ChangeBases() []string                        { return nil }

func (m *memory) Changes(context.Context, string, block.Range, func(uint64, bool) bool) error {
	return fmt.Errorf("changes: %w", block.ErrNotFound)
}

func (m *memory) Depths(_ context.Context, r block.Range, emit func(uint64, uint32) bool) error {
	for r.Len > 0 {
		n := min(r.Len, block.Size-r.Off%block.Size)
		m.mu.Lock()
		depth := uint32(0)
		if m.blocks[r.Off/block.Size] != nil {
			depth = 1
		}
		m.mu.Unlock()
		if !emit(n, depth) {
			return nil
		}
		r.Off, r.Len = r.Off+n, r.Len-n
	}
	return nil
}
