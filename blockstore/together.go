package blockstore

import (
	"errors"
	"sync"
)

// partBytes is what a part of a long read has at least, stored: decoding and hashing it takes tens of microseconds, many times what it costs to have another goroutine do it.
const partBytes = 64 << 10

// parts cuts what is wanted, total bytes, into as many parts as there are goroutines to be had for them, never between two that lie in one frame. What is returned was taken from c.helpers, but for the
// first.
func (c *chunkReader) parts(want []wanted, total int) [][]wanted {
	if len(want) < 2 {
		return nil
	}
	helpers := 0
	for (helpers+2)*partBytes <= total && c.help() {
		helpers++
	}
	if helpers == 0 {
		return nil
	}
	parts := make([][]wanted, 0, helpers+1)
	size := total / (helpers + 1)
	for len(want) > 0 && len(parts) < helpers {
		n, sum := 0, 0
		for n < len(want) && (sum < size || n > 0 && want[n].frame() == want[n-1].frame()) {
			sum += len(want[n].p)
			n++
		}
		parts, want = append(parts, want[:n]), want[n:]
	}
	if len(want) > 0 {
		parts = append(parts, want)
	}
	for range helpers + 1 - max(1, len(parts)) {
		<-c.helpers
	}
	return parts
}

func (c *chunkReader) help() bool {
	select {
	case c.helpers <- struct{}{}:
		return true
	default:
		return false
	}
}

// part is what a helper does of a long read.
type part struct {
	c    *chunkReader
	how  fetching
	want []wanted
	err  *error
	done *sync.WaitGroup
}

func (p part) fetch() {
	*p.err = p.c.fetchPart(p.how, p.want)
	<-p.c.helpers
	p.done.Done()
}

// together answers the first part itself and has the helpers that parts had engaged answer the others.
func (c *chunkReader) together(how fetching, parts [][]wanted) error {
	errs := make([]error, len(parts))
	var others sync.WaitGroup
	others.Add(len(parts) - 1)
	for i := 1; i < len(parts); i++ {
		c.crew.Go(part{c, how, parts[i], &errs[i], &others})
	}
	errs[0] = c.fetchPart(how, parts[0])
	others.Wait()
	return errors.Join(errs...)
}
