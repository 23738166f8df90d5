package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	soakDepth     = 16
	soakPool      = 4096    // blocks of known duplicates, the same for all volumes
	soakPoolFirst = 1 << 48 // token of the first; tokens of other blocks are counted from 1
	soakRate      = 8 << 20 // bytes a second that a volume's client writes on average
	soakBurst     = 64 << 20
)

// soakTokens counts what is unique.
var soakTokens atomic.Uint64

// soakProfile is what a guest does: shares of each kind of request, and their sizes in blocks.
type soakProfile struct {
	name, chunking                                 string
	blocks                                         int
	random, sequential, copies, zero, flush, reads int // shares
	least, most                                    int // of a random write
}

// soakProfiles are the guests.
var soakProfiles = [...]soakProfile{
	{name: "database", chunking: "fixed:16KiB", blocks: 96 << 8, random: 60, zero: 2, flush: 12, reads: 26, least: 1, most: 4},
	{name: "files", chunking: "cdc", blocks: 128 << 8, random: 25, copies: 15, zero: 10, flush: 5, reads: 20, least: 1, most: 64},
	{name: "stream", chunking: "cdc", blocks: 192 << 8, sequential: 50, flush: 4, reads: 10},
	{name: "images", chunking: "cdc", blocks: 128 << 8, sequential: 10, copies: 30, zero: 10, flush: 3, reads: 10},
}

// soakRequest is one request under way.
type soakRequest struct {
	command uint16
	at      int
	tokens  []uint64 // of a write, a trim, or what a read must find
}

// next chooses a request. Blocks that are in another one are left alone.
func (v *soakVolume) next(busy []bool) (r soakRequest, ok bool) {
	p := v.profile
	kind := v.rng.IntN(p.random + p.sequential + p.copies + p.zero + p.flush + p.reads)
	n, pooled := 0, false
	pick := func(share int) bool {
		kind -= share
		return kind < 0
	}
	switch {
	case pick(p.random):
		r.command, n = nbdWrite, p.least+v.rng.IntN(p.most-p.least+1)
		r.at = v.place(n)
	case pick(p.sequential):
		r.command, n = nbdWrite, 256
		r.at = v.cursor % (len(busy) - n)
		v.cursor = r.at + n
	case pick(p.copies):
		r.command, n, pooled = nbdWrite, 256, true
		r.at = v.rng.IntN(len(busy) - n)
	case pick(p.zero):
		r.command, n = uint16(nbdTrim+2*v.rng.IntN(2)), 1+v.rng.IntN(512) // nbdTrim or nbdZeroes
		r.at = v.place(n)
	case pick(p.flush):
		r.command = nbdFlush
	default:
		r.command, n = nbdRead, 1+v.rng.IntN(32)
		r.at = v.place(n)
	}
	for i := range n {
		if busy[r.at+i] {
			return r, false
		}
	}
	r.tokens = v.content(r, n, pooled)
	return r, true
}

// place is where n blocks go: four of five to a hot tenth.
func (v *soakVolume) place(n int) int {
	all := len(v.state.tokens) - n // only the director changes the length, while the load stands still
	if v.rng.IntN(5) > 0 {
		return v.rng.IntN(max(1, all/10))
	}
	return v.rng.IntN(all)
}

// content chooses tokens: new ones, those of the pool, zeroes, or for a read the ones that are there.
func (v *soakVolume) content(r soakRequest, n int, pooled bool) []uint64 {
	tokens := make([]uint64, n)
	switch {
	case r.command == nbdRead:
		v.mu.Lock()
		copy(tokens, v.state.tokens[r.at:])
		v.mu.Unlock()
	case r.command == nbdWrite && pooled:
		first := v.rng.IntN(soakPool - n)
		for i := range tokens {
			tokens[i] = soakPoolFirst + uint64(first+i)
		}
	case r.command == nbdWrite:
		for i := range tokens {
			tokens[i] = soakTokens.Add(1)
		}
	}
	return tokens
}

// soakReply is what hvd answered to a request. data is that of a read.
type soakReply struct {
	cookie  uint64
	refused syscall.Errno
	data    []byte
	err     error // the connection is broken
}

// soakConn is the connection of a load. Replies are taken while requests are sent: a client that did one after the other would wait for a server that waits for it.
type soakConn struct {
	c       *nbdClient
	busy    []bool // blocks that are in a request
	replies chan soakReply

	mu    sync.Mutex
	under map[uint64]soakRequest
}

// listen takes replies until the connection breaks.
func (l *soakConn) listen() {
	for {
		r := soakReply{}
		r.cookie, r.refused, r.err = l.c.receive()
		if r.err == nil && r.refused == 0 {
			l.mu.Lock()
			request := l.under[r.cookie]
			l.mu.Unlock()
			if request.command == nbdRead {
				r.data = make([]byte, len(request.tokens)*soakBlock)
				_, r.err = io.ReadFull(l.c.conn, r.data)
			}
		}
		l.replies <- r
		if r.err != nil {
			return
		}
	}
}

// run keeps the load going until stop is closed: nil then, else the error that broke the connection. Requests in flight at a stop are waited for.
func (v *soakVolume) run(socket string) error {
	c, err := dialNBD(socket, v.name)
	if err != nil {
		return err
	}
	if want := uint64(len(v.state.tokens)) * soakBlock; c.size != want {
		return errors.Join(fmt.Errorf("%s has %d bytes, want %d", v.name, c.size, want), c.conn.Close())
	}
	l := &soakConn{c: c, busy: make([]bool, len(v.state.tokens)), replies: make(chan soakReply, soakDepth+1), under: map[uint64]soakRequest{}}
	var listening sync.WaitGroup
	listening.Go(l.listen)
	defer listening.Wait()
	defer c.conn.Close()
	pace := newPace(v.rng)
	flying := 0
	for stopping := false; ; {
		select {
		case <-v.stop:
			stopping = true
		case reply := <-l.replies:
			if err := v.take(l, reply); err != nil {
				return err
			}
			flying--
			continue
		default:
		}
		switch {
		case stopping && flying == 0:
			return nil
		case !stopping && flying < soakDepth && pace.due():
			if r, ok := v.next(l.busy); ok {
				pace.spend(len(r.tokens) * soakBlock)
				if err := v.send(l, r); err != nil {
					return err
				}
				flying++
			}
		default:
			time.Sleep(200 * time.Microsecond) // a guest that waits, or has nothing to do
		}
	}
}

func (v *soakVolume) send(l *soakConn, r soakRequest) error {
	length, flags := len(r.tokens)*soakBlock, uint16(0)
	var data []byte
	if r.command == nbdWrite {
		data = make([]byte, length)
		for i, token := range r.tokens {
			soakFill(data[i*soakBlock:][:soakBlock], token)
		}
	}
	if r.command != nbdRead && r.command != nbdFlush {
		v.issue(r.at, r.tokens)
		flags = uint16(v.rng.IntN(64) / 63 * nbdFUA)
	}
	for i := range r.tokens {
		l.busy[r.at+i] = true
	}
	l.mu.Lock()
	l.under[l.c.cookie+1] = r // before the reply can come
	l.mu.Unlock()
	_ = l.c.conn.SetDeadline(time.Now().Add(patience)) // for its reply, too
	_, err := l.c.send(r.command, flags, uint64(r.at)*soakBlock, length, data)
	return err
}

// take books a reply. What a read brought was written by nobody meanwhile.
func (v *soakVolume) take(l *soakConn, reply soakReply) error {
	if reply.err != nil {
		return reply.err
	}
	l.mu.Lock()
	r, known := l.under[reply.cookie]
	delete(l.under, reply.cookie)
	l.mu.Unlock()
	if !known || reply.refused != 0 {
		return &soakError{fmt.Errorf("%s: command %d at block %d, %d blocks: %w", v.name, r.command, r.at, len(r.tokens), reply.refused)}
	}
	for i := range r.tokens {
		l.busy[r.at+i] = false
	}
	switch r.command {
	case nbdFlush:
	case nbdRead:
		for i, want := range r.tokens {
			if token, err := soakToken(reply.data[i*soakBlock:][:soakBlock]); err != nil || token != want {
				return &soakError{fmt.Errorf("%s: block %d reads as %#x, want %#x: %v", v.name, r.at+i, token, want, err)}
			}
		}
		v.mu.Lock()
		v.reads++
		v.mu.Unlock()
	default:
		v.replied(r.at, r.tokens)
	}
	return nil
}

// soakError is what no broken connection explains.
type soakError struct{ err error }

func (e *soakError) Error() string { return e.err.Error() }
func (e *soakError) Unwrap() error { return e.err }

// pace lets bytes through at the soak's rate, and now and then a burst as fast as hvd takes it.
type pace struct {
	rng   *rand.Rand
	next  time.Time
	burst int
}

func newPace(rng *rand.Rand) *pace { return &pace{rng: rng, next: time.Now()} }

func (p *pace) due() bool { return p.burst > 0 || !time.Now().Before(p.next) }

func (p *pace) spend(n int) {
	if p.burst > 0 {
		p.burst -= n + soakBlock
		p.next = time.Now()
		return
	}
	p.next = p.next.Add(time.Duration(float64(n+soakBlock) / soakRate * float64(time.Second)))
	if now := time.Now(); p.next.Before(now.Add(-time.Second)) {
		p.next = now.Add(-time.Second) // what could not be done in time is not made up for
	}
	if p.rng.IntN(4000) == 0 {
		p.burst = soakBurst
	}
}
