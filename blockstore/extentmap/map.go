package extentmap

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Reader reads rows. A *pebble.DB, a *pebble.Snapshot and an indexed *pebble.Batch fit. A missing row is pebble.ErrNotFound.
type Reader interface {
	Get(key []byte) (value []byte, closer io.Closer, err error)
}

// Map reads the maps of volumes. It may be used concurrently if its Reader may.
//
// A page or node that is missing is an error that matches block.ErrNotFound: the map moved under a reader that holds an old Root. One that fails its check, or that is
// not the one its parent names, is a *block.CorruptError.
type Map struct {
	reader Reader
	cache  *Cache
}

// NewMap returns a map over reader. cache may be nil, and may be shared by maps over readers of the same store.
func NewMap(reader Reader, cache *Cache) *Map { return &Map{reader: reader, cache: cache} }

// Lookup calls visit, in order, for each extent that overlaps [off, off+n), clipped to that range, until visit returns false. What is not visited is a hole.
func (m *Map) Lookup(r Root, off, n uint64, visit func(Extent) bool) error {
	if off+n < off {
		return fmt.Errorf("look up %d+%d: %w", off, n, block.ErrOutOfRange)
	}
	if n == 0 || r.ID == 0 {
		return nil
	}
	_, err := m.lookup(r.Subtree(), off, off+n, visit)
	return err
}

// lookup visits the part of a subtree in [off, end) and reports whether visit wants more.
func (m *Map) lookup(s Subtree, off, end uint64, visit func(Extent) bool) (more bool, err error) {
	lo := max(regionOf(off), s.Region)
	hi := min(regionOf(end-1), s.Region+s.Span()-1)
	if lo > hi {
		return true, nil
	}
	if s.Level == 0 {
		p, d, err := m.pageRow(s, true)
		if err != nil {
			return false, err
		}
		if d.data != nil {
			return m.lookupParts(d, off, end, visit)
		}
		return p.lookup(off, end, visit), nil
	}
	n, err := m.node(s, true)
	if err != nil {
		return false, err
	}
	last := childIndex(s.Level, hi)
	for i := n.next(childIndex(s.Level, lo)); i <= last; i = n.next(i + 1) {
		if more, err := m.lookup(childAt(s.Level, s.Region, i, n.child(i)), off, end, visit); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// Region returns the page of a region, the zero Page if it is a hole.
func (m *Map) Region(r Root, region uint64) (Page, error) {
	s, err := m.find(r, region)
	if err != nil || s.ID == 0 {
		return Page{}, err
	}
	return m.page(s, true)
}

// Extents returns how many extents a region has. It reads no part of a page that is kept in parts.
func (m *Map) Extents(r Root, region uint64) (int, error) {
	s, err := m.find(r, region)
	if err != nil || s.ID == 0 {
		return 0, err
	}
	p, d, err := m.pageRow(s, true)
	return p.Len() + d.extents(), err
}

// find returns the page of a region, or a hole.
func (m *Map) find(r Root, region uint64) (Subtree, error) {
	s := r.Subtree()
	if region >= s.Span() {
		return Subtree{}, nil
	}
	for s.ID != 0 && s.Level > 0 {
		n, err := m.node(s, true)
		if err != nil {
			return Subtree{}, err
		}
		i := childIndex(s.Level, region)
		s = childAt(s.Level, s.Region, i, n.child(i))
	}
	return s, nil
}

// page returns the page that s names, with all its parts. Walks of whole maps do not fill the cache.
func (m *Map) page(s Subtree, fill bool) (Page, error) {
	p, d, err := m.pageRow(s, fill)
	if err != nil || d.data == nil {
		return p, err
	}
	return m.assemble(s, d, nil, fill)
}

// pageRow returns the row that s names: a page, or the directory of one that is kept in parts.
func (m *Map) pageRow(s Subtree, fill bool) (Page, Directory, error) {
	data, cached := m.cache.get(s.ID)
	if !cached {
		var err error
		if data, err = m.fetch(PageKey(s.ID)); err != nil {
			return Page{}, Directory{}, fmt.Errorf("read region page %d: %w", s.ID, err)
		}
	}
	p, parted := Page{data: data}, IsDirectory(data)
	if !cached || !parted && string(data[:4]) != pageMagic || p.Region() != s.Region {
		var err error
		if parted {
			_, err = DecodeDirectory(s.ID, s.Region, data)
		} else {
			_, err = DecodePage(s.ID, s.Region, data)
		}
		if err != nil {
			return Page{}, Directory{}, err
		}
	}
	if p.Birth() != s.Birth {
		c := checker{kind: "region page", id: s.ID}
		return Page{}, Directory{}, c.fail(16, fmt.Sprint("birth ", s.Birth), fmt.Sprint("birth ", p.Birth()))
	}
	if !cached && fill {
		m.cache.add(s.ID, data)
	}
	if parted {
		return Page{}, Directory{data: data}, nil
	}
	return p, Directory{}, nil
}

// node returns the node that s names.
func (m *Map) node(s Subtree, fill bool) (Node, error) {
	data, cached := m.cache.get(s.ID)
	if !cached {
		var err error
		if data, err = m.fetch(NodeKey(s.ID)); err != nil {
			return Node{}, fmt.Errorf("read radix node %d: %w", s.ID, err)
		}
	}
	if n := (Node{data}); cached && string(data[:4]) == nodeMagic && n.Level() == s.Level && n.Region() == s.Region && n.Birth() == s.Birth {
		return n, nil
	}
	n, err := DecodeNode(s, data)
	if err == nil && !cached && fill {
		m.cache.add(s.ID, data)
	}
	return n, err
}

// fetch returns a copy of a row.
func (m *Map) fetch(key []byte) ([]byte, error) {
	value, closer, err := getBorrowed(m.reader, key)
	if err != nil {
		return nil, err
	}
	data := append([]byte(nil), value...)
	return data, closer.Close()
}

// getBorrowed returns a row's value, which is valid until closer is closed. A missing row is block.ErrNotFound.
func getBorrowed(reader Reader, key []byte) (value []byte, closer io.Closer, err error) {
	value, closer, err = reader.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil, block.ErrNotFound
	}
	return value, closer, err
}
