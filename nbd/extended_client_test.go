package nbd

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/nbdtest"
)

// wide is a client that speaks extended headers, which the clients of Debian 12 do not.
type wide struct {
	*client
	*nbdtest.Extended
}

// attachWide dials, agrees on extended headers, selects contexts and enters transmission. It returns the transmission flags.
func (s *served) attachWide(t testing.TB, contexts ...string) (w *wide, ids map[string]uint32, flags uint16) {
	t.Helper()
	c := s.dial(t)
	e := nbdtest.Attach(t, c.nc, "disk", contexts...)
	return &wide{c, e}, e.IDs, e.Flags
}

// statuses receives a reply to BLOCK_STATUS: extents by context id. All contexts of these tests have a status of 32 bits.
func (w *wide) statuses(cookie uint64) map[uint32][]extent {
	w.t.Helper()
	got := map[uint32][]extent{}
	for id, extents := range w.Statuses(cookie) {
		for _, e := range extents {
			if e[1]>>32 != 0 {
				w.t.Fatalf("status %#x does not fit in 32 bits", e[1])
			}
			got[id] = append(got[id], extent{e[0], uint32(e[1])})
		}
	}
	return got
}

// wideHeader is an extended request header.
var wideHeader = nbdtest.ExtendedHeader
