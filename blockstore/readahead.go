package blockstore

import (
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	// maxStreams is how many sequential readers of a device are told apart.
	maxStreams = 4
	// aheadFrom is how many bytes must have been read one after the other before anything is read ahead.
	aheadFrom = 256 << 10
	// aheadMost bounds how far ahead of its reader a stream is, in bytes; at first it is as far as the stream is long.
	aheadMost = 16 << 20
	// maxAheads bounds the goroutines that read ahead, of all devices together. Whoever finds them busy goes without.
	maxAheads = 8
)

// streams notices readers that go through a device from front to back. Only reads that met a device begin a stream, so what is in memory costs nothing; from then on all
// reads move it on, for most of them find in memory what was read ahead for them.
type streams struct {
	active  atomic.Bool // there is a stream
	running sync.WaitGroup

	mu    sync.Mutex
	known [maxStreams]sequence
	busy  bool // somebody reads ahead for this device
	clock uint64
	begun int // windows so far

	found int // runs of the log found in memory one after the other; belongs to who reads ahead
}

// sequence is one reader.
type sequence struct {
	next  uint64 // where it goes on, bytes of the volume
	run   uint64 // bytes that it read one after the other
	ahead uint64 // up to here it was read ahead
	used  uint64 // clock of its last read
}

// follow moves on the stream that a read belongs to, or begins one if the read met a device, in place of the one that rested longest. It returns what is to be read ahead; whoever gets a
// range calls ended.
func (s *streams) follow(off, n uint64, waited bool) (ahead block.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	oldest := &s.known[0]
	for i := range s.known {
		t := &s.known[i]
		if t.run > 0 && t.takes(off, n) {
			t.used = s.clock
			return s.moveOn(t, off+n)
		}
		if t.used < oldest.used {
			oldest = t
		}
	}
	if waited {
		*oldest = sequence{next: off + n, run: n, ahead: off + n, used: s.clock}
		s.active.Store(true)
	} else if s.clock-s.latest() > 1024 {
		s.active.Store(false)
	}
	return block.Range{}
}

// latest is when a stream was moved on last.
func (s *streams) latest() (clock uint64) {
	for i := range s.known {
		clock = max(clock, s.known[i].used)
	}
	return clock
}

// takes reports whether a read belongs to the stream. Requests that are in flight together come in any order: up to 32 short ones, or 8 MiB.
func (t *sequence) takes(off, n uint64) bool {
	slack := min(32*n, 8<<20)
	return off <= t.next+slack && off+slack >= t.next
}

// moveOn has the stream go on at next.
func (s *streams) moveOn(t *sequence, next uint64) (ahead block.Range) {
	if next > t.next {
		t.run += next - t.next
		t.next = next
	}
	window := min(t.run, aheadMost)
	if s.busy || t.run < aheadFrom || t.ahead > t.next+window/2 {
		return block.Range{}
	}
	from := max(t.ahead, t.next)
	t.ahead = t.next + window
	s.busy = true
	s.begun++
	s.running.Add(1)
	return block.Range{Off: from, Len: t.ahead - from}
}

// ended says that the reading ahead of a range has begun, as far as it goes.
func (s *streams) ended() {
	s.mu.Lock()
	s.busy = false
	s.mu.Unlock()
	s.running.Done()
}

// advance tells the device's streams of a read, and reads ahead for the one that it belongs to.
func (d *Device) advance(off, n uint64, waited bool) {
	r := d.streams.follow(off, n, waited)
	if r.Len == 0 {
		return
	}
	size := d.Size()
	r.Off = min(r.Off, size)
	r.Len = min(r.Len, size-r.Off)
	s := d.v.s
	if r.Len == 0 || !s.aheads.enter() {
		d.streams.ended()
		return
	}
	go func() {
		defer s.aheads.leave()
		defer d.streams.ended()
		d.streams.found = s.readAhead(d.node(), r, d.streams.found)
	}()
}

// aheads counts the goroutines that read ahead.
type aheads struct {
	mu      sync.Mutex
	closed  bool
	n       int
	running sync.WaitGroup
}

func (a *aheads) enter() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || a.n == maxAheads {
		return false
	}
	a.n++
	a.running.Add(1)
	return true
}

func (a *aheads) leave() {
	a.mu.Lock()
	a.n--
	a.mu.Unlock()
	a.running.Done()
}

// close waits for those that are under way, and lets in no more.
func (a *aheads) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.running.Wait()
}
