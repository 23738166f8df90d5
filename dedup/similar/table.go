package similar

// Table finds, for a sketch, one that was added before and is likely alike. It is meant for the chunks of one batch: it keeps every sketch. The zero Table is ready for use; Reset
// empties it and keeps its memory. It belongs to one goroutine.
type Table struct {
	sketches []Sketch
	supers   [superFeatures]map[uint64]int
}

// least is how many features two chunks must have in common to be taken for alike when a super-feature, or their place, suggests it: a third of their content, about.
const least = 4

// Add keeps a sketch. They are numbered from 0 in the order of their adding.
func (t *Table) Add(s *Sketch) {
	n := len(t.sketches)
	t.sketches = append(t.sketches, *s)
	f, ok := s.Super()
	if !ok {
		return
	}
	for i := range f {
		if t.supers[i] == nil {
			t.supers[i] = make(map[uint64]int)
		}
		if _, known := t.supers[i][f[i]]; !known {
			t.supers[i][f[i]] = n
		}
	}
}

// Find returns the number of a sketch that is likely that of a chunk like this one, the first that was added of those with a super-feature in common. hint, if it is not
// negative, is one to try before: that of the chunk at the same place of another version.
func (t *Table) Find(s *Sketch, hint int) (int, bool) {
	if hint >= 0 && hint < len(t.sketches) && t.sketches[hint].Common(s) >= least {
		return hint, true
	}
	f, ok := s.Super()
	if !ok {
		return 0, false
	}
	for i := range f {
		if n, known := t.supers[i][f[i]]; known && t.sketches[n].Common(s) >= least {
			return n, true
		}
	}
	return 0, false
}

// Reset empties the table.
func (t *Table) Reset() {
	t.sketches = t.sketches[:0]
	for i := range t.supers {
		clear(t.supers[i])
	}
}
