package live

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

const (
	pageWords   = block.Size / 8
	pageBlocks  = block.Size * 8          // blocks of the volume that a page has bits for
	pageSpan    = pageBlocks * block.Size // bytes of the volume: 128 MiB
	marksAtOnce = 256                     // pages that are written with one append
)

// MarksSize is the size of the volume of marks of a volume of so many bytes.
func MarksSize(volumeBytes uint64) uint64 {
	return max(1, (volumeBytes+pageSpan-1)/pageSpan) * block.Size
}

// markPage has a bit for each of pageBlocks blocks, the lowest of a word first. It is replaced, never changed.
type markPage [pageWords]uint64

// fullPage stands for all pages whose bits are all set.
var fullPage = func() *markPage {
	p := new(markPage)
	for i := range p {
		p[i] = ^uint64(0)
	}
	return p
}()

func (p *markPage) has(n uint64) bool { return p[n/64]>>(n%64)&1 != 0 }

// with returns the page with n bits from first on set, which is p itself if they are.
func (p *markPage) with(first, n uint64) *markPage {
	if p == nil {
		p = new(markPage)
	}
	next := p
	for at := first; at < first+n; {
		in := at % 64
		count := min(64-in, first+n-at)
		bits := ^uint64(0) >> (64 - count) << in
		if next[at/64]&bits != bits {
			if next == p {
				next = new(markPage)
				*next = *p
			}
			next[at/64] |= bits
		}
		at += count
	}
	if *next == *fullPage {
		return fullPage
	}
	return next
}

func (p *markPage) encode() []byte {
	text := make([]byte, 0, block.Size)
	for _, word := range p {
		text = binary.LittleEndian.AppendUint64(text, word)
	}
	return text
}

// marks are the marks of a volume: in memory as far as any is set, and in a volume of their own.
type marks struct {
	device nbd.Device
	turn   chan struct{} // has a token while somebody writes
	closed bool          // nothing is written any more; of who writes

	mu    sync.RWMutex
	pages map[uint64]*markPage // by number; not there: none is set
}

// openMarks reads the marks of a volume.
func openMarks(ctx context.Context, device nbd.Device) (*marks, error) {
	m := &marks{device: device, turn: make(chan struct{}, 1), pages: map[uint64]*markPage{}}
	const step = 256 * block.Size
	p := make([]byte, step)
	for off := uint64(0); off < device.Size(); off += step {
		part := p[:min(step, device.Size()-off)]
		holes, err := device.ReadAt(ctx, part, off, nil)
		if err != nil {
			return nil, fmt.Errorf("read marks: %w", err)
		}
		if len(holes) == 1 && holes[0].Len == uint64(len(part)) {
			continue
		}
		for at := 0; at+block.Size <= len(part); at += block.Size {
			page := new(markPage)
			for i := range page {
				page[i] = binary.LittleEndian.Uint64(part[at+8*i:])
			}
			switch *page {
			case markPage{}:
				continue
			case *fullPage:
				page = fullPage
			}
			m.pages[(off+uint64(at))/block.Size] = page
		}
	}
	return m, nil
}

// set sets the marks of whole blocks. When it returns nil they are in the log, before whatever is written from then on.
func (m *marks) set(ctx context.Context, ranges []block.Range) error {
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.turn }()
	if m.closed {
		return nil
	}
	changed := map[uint64]*markPage{}
	var order []uint64
	for _, r := range ranges {
		first, end := r.Off/block.Size, (r.End()+block.Size-1)/block.Size
		for first < end {
			number := first / pageBlocks
			count := min(end, (number+1)*pageBlocks) - first
			before := changed[number]
			if before == nil {
				before = m.page(number)
			}
			if after := before.with(first%pageBlocks, count); after != before {
				if changed[number] == nil {
					order = append(order, number)
				}
				changed[number] = after
			}
			first += count
		}
	}
	for len(order) > 0 {
		n := min(len(order), marksAtOnce)
		batch := make([]nbd.Write, 0, n)
		for _, number := range order[:n] {
			batch = append(batch, nbd.Write{Off: number * block.Size, Data: changed[number].encode()})
		}
		if err := m.device.Write(ctx, batch, false); err != nil {
			return fmt.Errorf("write marks: %w", err)
		}
		m.mu.Lock()
		for _, number := range order[:n] {
			m.pages[number] = changed[number]
		}
		m.mu.Unlock()
		order = order[n:]
	}
	return nil
}

// close ends the use of the device.
func (m *marks) close(ctx context.Context) error {
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.turn }()
	m.closed = true
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pages = map[uint64]*markPage{}
	return nil
}

func (m *marks) page(number uint64) *markPage {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pages[number]
}

// come says which blocks of a range had come at a moment.
type come struct {
	reached uint64 // bytes
	first   uint64 // number of the first page
	pages   []*markPage
	one     [1]*markPage // memory for most
}

// look notes which blocks of a range have marks.
func (m *marks) look(r block.Range, c *come) {
	c.first = r.Off / pageSpan
	c.pages = c.one[:0]
	m.mu.RLock()
	defer m.mu.RUnlock()
	for n := c.first; n*pageSpan < r.End(); n++ {
		c.pages = append(c.pages, m.pages[n])
	}
}

// has reports whether the block at an offset had come.
func (c *come) has(off uint64) bool {
	if off < c.reached {
		return true
	}
	page := c.pages[off/pageSpan-c.first]
	return page != nil && page.has(off/block.Size%pageBlocks)
}

// missing returns which blocks had not come of a range of whole blocks of which p was read: those without a mark whose bytes are all zero. Whether the engine tells them as holes says nothing: destage cuts regions as a whole, and stores what is zero
// beside data with it. Bytes that are not zero have come, as nothing but a guest or the puller writes them; a guest's zeroes have marks.
func (c *come) missing(p []byte, off uint64) (all []block.Range) {
	for at := 0; at < len(p); at += block.Size {
		n, here := min(block.Size, len(p)-at), off+uint64(at)
		if !isZero(p[at:at+n]) || c.has(here) {
			continue
		}
		if k := len(all); k > 0 && all[k-1].End() == here {
			all[k-1].Len += uint64(n)
			continue
		}
		all = append(all, block.Range{Off: here, Len: uint64(n)})
	}
	return all
}
