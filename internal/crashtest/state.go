package crashtest

import (
	"fmt"
	"maps"
	"slices"
)

// pageSectors is how many sectors a page of a Content holds.
const pageSectors = 128

type page [pageSectors]Token

var zeroPage page

// Content is the bytes of a volume or snapshot, as tokens. Pages are never changed once they are in a Content, so copies share them; a page of zeroes is left out.
type Content struct {
	Size  uint64 // bytes
	Pages map[uint64]*page
	// Protected is a snapshot that must not be deleted.
	Protected bool
}

// clone copies the bytes; what is made of a protected snapshot is not protected.
func (c Content) clone() Content { return Content{Size: c.Size, Pages: maps.Clone(c.Pages)} }

// set makes n sectors from sector at on count up from first; first 0 makes them zero.
func (c *Content) set(at, n uint64, first Token) {
	for n > 0 {
		id, in := at/pageSectors, at%pageSectors
		k := min(n, pageSectors-in)
		var p page
		if old := c.Pages[id]; old != nil {
			p = *old
		}
		for i := range k {
			p[in+i] = first
			if first != 0 {
				first++
			}
		}
		c.put(id, &p)
		at, n = at+k, n-k
	}
}

func (c *Content) put(id uint64, p *page) {
	if *p == zeroPage {
		delete(c.Pages, id)
		return
	}
	if c.Pages == nil {
		c.Pages = map[uint64]*page{}
	}
	c.Pages[id] = p
}

// diff describes the first difference, or returns "".
func (c Content) diff(want Content) string {
	if c.Size != want.Size {
		return fmt.Sprintf("size is %d B, want %d", c.Size, want.Size)
	}
	if c.Protected != want.Protected {
		return fmt.Sprintf("protected is %v, want %v", c.Protected, want.Protected)
	}
	ids := map[uint64]bool{}
	for id := range c.Pages {
		ids[id] = true
	}
	for id := range want.Pages {
		ids[id] = true
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		a, b := c.Pages[id], want.Pages[id]
		if a == nil {
			a = &zeroPage
		}
		if b == nil {
			b = &zeroPage
		}
		if a == b || *a == *b {
			continue
		}
		for i := range a {
			if a[i] != b[i] {
				return fmt.Sprintf("byte %d is of %v, want %v", (id*pageSectors+uint64(i))*sectorBytes, a[i], b[i])
			}
		}
	}
	return ""
}

// Volume is a volume with its snapshots.
type Volume struct {
	Content
	Snapshots map[string]Content
}

// protected reports whether a snapshot of the volume is.
func (v *Volume) protected() bool {
	for _, c := range v.Snapshots {
		if c.Protected {
			return true
		}
	}
	return false
}

// State is all that a client has in a store.
type State struct{ Volumes map[string]*Volume }

// NewState returns the state of a client that has done nothing.
func NewState() *State { return &State{Volumes: map[string]*Volume{}} }

func (s *State) clone() *State {
	c := NewState()
	for name, v := range s.Volumes {
		w := &Volume{Content: v.Content.clone(), Snapshots: maps.Clone(v.Snapshots)}
		if w.Snapshots == nil {
			w.Snapshots = map[string]Content{}
		}
		c.Volumes[name] = w
	}
	return c
}

// fewerSnapshots reports whether every volume has fewer than n.
func (s *State) fewerSnapshots(n int) bool {
	for _, v := range s.Volumes {
		if len(v.Snapshots) >= n {
			return false
		}
	}
	return true
}

// diff describes the first difference, or returns "".
func (s *State) diff(want *State) string {
	for _, name := range slices.Sorted(maps.Keys(want.Volumes)) {
		if s.Volumes[name] == nil {
			return fmt.Sprintf("volume %q is missing", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Volumes)) {
		v, w := s.Volumes[name], want.Volumes[name]
		if w == nil {
			return fmt.Sprintf("volume %q should not be there", name)
		}
		if d := v.Content.diff(w.Content); d != "" {
			return fmt.Sprintf("volume %q: %s", name, d)
		}
		for _, snap := range slices.Sorted(maps.Keys(w.Snapshots)) {
			if _, ok := v.Snapshots[snap]; !ok {
				return fmt.Sprintf("snapshot %q of %q is missing", snap, name)
			}
		}
		for _, snap := range slices.Sorted(maps.Keys(v.Snapshots)) {
			x, ok := w.Snapshots[snap]
			if !ok {
				return fmt.Sprintf("snapshot %q of %q should not be there", snap, name)
			}
			if d := v.Snapshots[snap].diff(x); d != "" {
				return fmt.Sprintf("snapshot %q of %q: %s", snap, name, d)
			}
		}
	}
	return ""
}
