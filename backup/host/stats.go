package host

import (
	"slices"
	"strings"
)

// Stats are counts of a repository since the host began.
type Stats struct {
	Repository  string
	Stored      uint64 // objects
	StoredBytes uint64
	SentBytes   uint64 // of objects
	Deleted     uint64 // objects
	Refused     uint64 // requests that a client may not make, or not yet
	Failed      uint64 // requests that this machine could not do
}

// Stats returns those of the repositories that somebody has asked for something, ordered by name.
func (h *Host) Stats() []Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]Stats, 0, len(h.mu.stats))
	for _, s := range h.mu.stats {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Stats) int { return strings.Compare(a.Repository, b.Repository) })
	return all
}

// count changes the counts of a repository that is there: what clients make up is not remembered.
func (c *call) count(change func(*Stats)) {
	if c.in == nil {
		return
	}
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	s := c.h.mu.stats[c.name]
	if s == nil {
		s = &Stats{Repository: c.name}
		c.h.mu.stats[c.name] = s
	}
	change(s)
}
