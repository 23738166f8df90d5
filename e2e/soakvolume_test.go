package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
)

// soakBlock is the unit in which a soak books what a volume holds.
const soakBlock = 4096

// soakState is what a volume, a snapshot or a clone must hold: for each block a token, which names its content. 0 is zeroes.
type soakState struct {
	tokens []uint64
	doubt  map[int][]uint64 // what a block may hold as well, because a request for it was in flight
}

func (s *soakState) clone() *soakState {
	c := &soakState{tokens: slices.Clone(s.tokens), doubt: map[int][]uint64{}}
	for at, tokens := range s.doubt {
		c.doubt[at] = slices.Clone(tokens)
	}
	return c
}

// settle decides what a block holds. It fails if that cannot be.
func (s *soakState) settle(at int, token uint64) error {
	if token != s.tokens[at] && !slices.Contains(s.doubt[at], token) {
		return fmt.Errorf("block %d holds %#x, want %#x or one of %#x", at, token, s.tokens[at], s.doubt[at])
	}
	s.tokens[at] = token
	delete(s.doubt, at)
	return nil
}

// resize cuts off blocks, or adds zeroes.
func (s *soakState) resize(blocks int) {
	for at := range s.doubt {
		if at >= blocks {
			delete(s.doubt, at)
		}
	}
	for len(s.tokens) < blocks {
		s.tokens = append(s.tokens, 0)
	}
	s.tokens = s.tokens[:blocks]
}

// soakFill makes the content of a token: no compression makes it smaller.
func soakFill(p []byte, token uint64) {
	if token == 0 {
		clear(p)
		return
	}
	rng := rand.NewPCG(token, 1)
	binary.LittleEndian.PutUint64(p, token)
	for i := 8; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
}

// soakToken tells which token a block is the content of.
func soakToken(p []byte) (uint64, error) {
	token := binary.LittleEndian.Uint64(p)
	want := make([]byte, soakBlock)
	soakFill(want, token)
	if !bytes.Equal(p, want) {
		return 0, fmt.Errorf("content of no token: % x …", p[:32])
	}
	return token, nil
}

// verify compares an export with its state, block by block, and settles what is in doubt. The state must not change meanwhile.
func (s *soakState) verify(socket, export string) error {
	return s.visit(socket, export, func(first, n int) bool { return true })
}

// verifyDoubts is verify for the blocks in doubt and those beside them.
func (s *soakState) verifyDoubts(socket, export string) error {
	asked := slices.Sorted(maps.Keys(s.doubt))
	return s.visit(socket, export, func(first, n int) bool {
		at, _ := slices.BinarySearch(asked, first)
		return at < len(asked) && asked[at] < first+n
	})
}

func (s *soakState) visit(socket, export string, wanted func(first, n int) bool) error {
	const step = 256
	c, err := dialNBD(socket, export)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	if c.size != uint64(len(s.tokens))*soakBlock {
		return fmt.Errorf("%s has %d bytes, want %d", export, c.size, len(s.tokens)*soakBlock)
	}
	p := make([]byte, step*soakBlock)
	for first := 0; first < len(s.tokens); first += step {
		n := min(step, len(s.tokens)-first)
		if !wanted(first, n) {
			continue
		}
		if err := c.read(p[:n*soakBlock], uint64(first)*soakBlock); err != nil {
			return fmt.Errorf("read %s at block %d: %w", export, first, err)
		}
		for i := range n {
			token, err := soakToken(p[i*soakBlock:][:soakBlock])
			if err == nil {
				err = s.settle(first+i, token)
			}
			if err != nil {
				return fmt.Errorf("%s, block %d: %w", export, first+i, err)
			}
		}
	}
	return nil
}

// soakVolume is a volume under load, with its snapshots.
type soakVolume struct {
	name    string
	profile *soakProfile
	rng     *rand.Rand // of the load

	mu     sync.Mutex
	state  *soakState
	taking *soakState            // a snapshot or clone that is being made: what is issued now may be in it
	snaps  map[string]*soakState // owned by the director

	cursor   int           // of sequential writes
	stop     chan struct{} // closed to have the load end when all is replied
	ended    chan struct{} // closed when it has
	mayBreak atomic.Bool   // the connection will end by what the director does

	writes, bytes, reads int64 // replied; guarded by mu
}

// issue books a request for blocks before it is sent.
func (v *soakVolume) issue(at int, tokens []uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, token := range tokens {
		v.state.doubt[at+i] = append(v.state.doubt[at+i], token)
		if v.taking != nil {
			v.taking.doubt[at+i] = append(v.taking.doubt[at+i], token)
		}
	}
}

// replied books the reply.
func (v *soakVolume) replied(at int, tokens []uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, token := range tokens {
		v.state.tokens[at+i] = token
		delete(v.state.doubt, at+i)
	}
	v.writes++
	v.bytes += int64(len(tokens)) * soakBlock
}

// capture runs a command that makes a copy of the volume as it is at some moment in between, and returns what the copy may hold.
func (v *soakVolume) capture(command func() error) (*soakState, error) {
	v.mu.Lock()
	copied := v.state.clone()
	v.taking = copied
	v.mu.Unlock()
	err := command()
	v.mu.Lock()
	v.taking = nil
	v.mu.Unlock()
	return copied, err
}
