package framecache

import "golang.org/x/sys/unix"

const (
	pageSize = 2 << 10
	// pageOverhead is what a page costs beside its bytes: its link, and its part of what the entry of a usual frame takes.
	pageOverhead = 16
)

// pages is memory in pages, which are lent as chains.
type pages struct {
	mem    []byte
	mapped bool
	link   []uint32 // the next page of a chain; 0 ends it
	total  int
	free   int
	chain  uint32 // of free pages that were lent before
	fresh  uint32 // pages from here on were never lent
}

func (m *pages) init(n int) {
	// Page 0 is nobody.
	m.total, m.free, m.fresh = max(0, n-1), max(0, n-1), 1
	m.link = make([]uint32, m.total+1)
	size := (m.total + 1) * pageSize
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if m.mapped = err == nil; !m.mapped {
		mem = make([]byte, size)
	}
	if m.mapped {
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // frames are used at random: most of what a copy out of small pages costs is looking these up
	}
	m.mem = mem
}

func (m *pages) close() error {
	mem := m.mem
	m.mem, m.free, m.total = nil, 0, 0
	if !m.mapped || mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// take lends a chain of n pages, which must be free, and returns its ends.
func (m *pages) take(n int) (first, last uint32) {
	for i := range n {
		page := m.chain
		if page != 0 {
			m.chain = m.link[page]
		} else {
			page = m.fresh
			m.fresh++
		}
		m.link[page] = first
		if first = page; i == 0 {
			last = page
		}
	}
	m.free -= n
	return first, last
}

// give takes a chain of n pages back.
func (m *pages) give(first, last uint32, n int) {
	m.link[last], m.chain = m.chain, first
	m.free += n
}

func (m *pages) page(i uint32) []byte { return m.mem[uint64(i)*pageSize:][:pageSize] }

// read fills p with the bytes of a chain from off on. The chain must have them.
func (m *pages) read(first, off uint32, p []byte) {
	for ; off >= pageSize; off -= pageSize {
		first = m.link[first]
	}
	for {
		n := copy(p, m.page(first)[off:])
		if p = p[n:]; len(p) == 0 {
			return
		}
		first, off = m.link[first], 0
	}
}

// pageWriter fills a chain from front to back.
type pageWriter struct {
	*pages
	page uint32
	off  int
}

func (w *pageWriter) write(p []byte) {
	for len(p) > 0 {
		if w.off == pageSize {
			w.page, w.off = w.link[w.page], 0
		}
		n := copy(w.pages.page(w.page)[w.off:], p)
		p, w.off = p[n:], w.off+n
	}
}
