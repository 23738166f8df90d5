package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	streamBlock  = 4096
	streamBlocks = 4096 // of a volume
	streamDepth  = 32   // requests in flight
)

// stream is a client that writes numbered blocks, many at a time, and remembers which were replied to.
//
// Each block carries its place and the number of the write that it is of, and no block is in two requests at once. So after a crash a block holds its last replied write,
// or the one that was in flight.
type stream struct {
	volume string
	id     uint64

	mu      sync.Mutex
	issued  [streamBlocks]uint64 // number of the last write of each block; 0: zeroes
	replied [streamBlocks]uint64
	last    uint64
	snaps   map[string]*streamSnap
	writes  int // replied
}

// streamSnap is what is known of a snapshot.
type streamSnap struct {
	least, most [streamBlocks]uint64 // numbers that each block may have
	sum         [32]byte             // of its content, once that was read
	done        bool                 // its creation was replied to
	leaving     bool                 // its deletion was asked for
}

func newStream(id int) *stream {
	return &stream{volume: fmt.Sprintf("stream%d", id), id: uint64(id + 1), snaps: map[string]*streamSnap{}}
}

// fill makes the content of a block: half of it compresses.
func (s *stream) fill(p []byte, at int, number uint64) {
	rng := rand.NewPCG(number, uint64(at))
	for i := 0; i < len(p); i += 32 {
		binary.LittleEndian.PutUint64(p[i:], s.id)
		binary.LittleEndian.PutUint64(p[i+8:], uint64(at))
		binary.LittleEndian.PutUint64(p[i+16:], number)
		binary.LittleEndian.PutUint64(p[i+24:], rng.Uint64())
	}
}

// number returns the write that a block holds.
func (s *stream) number(p []byte, at int) (uint64, error) {
	number := binary.LittleEndian.Uint64(p[16:])
	want := make([]byte, streamBlock)
	if number != 0 || !bytes.Equal(p, want) {
		s.fill(want, at, number)
	}
	if !bytes.Equal(p, want) {
		return 0, fmt.Errorf("%s: block %d is no write of it: % x …", s.volume, at, p[:32])
	}
	return number, nil
}

// request is one write under way.
type request struct {
	at, n int
	first uint64
}

// work writes until the connection breaks, which is what it returns.
func (s *stream) work(socket string, rng *rand.Rand) error {
	c, err := dialNBD(socket, s.volume)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	under, busy := map[uint64]request{}, [streamBlocks]bool{}
	for {
		if len(under) < streamDepth {
			if err := s.issue(c, rng, under, &busy); err != nil {
				return err
			}
			continue
		}
		_ = c.conn.SetDeadline(time.Now().Add(patience))
		cookie, refused, err := c.receive()
		if err != nil {
			return err
		}
		if refused != 0 {
			return refused
		}
		r := under[cookie]
		delete(under, cookie)
		s.mu.Lock()
		for i := range r.n {
			s.replied[r.at+i], busy[r.at+i] = r.first+uint64(i), false
		}
		s.writes++
		s.mu.Unlock()
	}
}

// issue sends one write of up to 16 blocks to a place that no other write is under way to, or now and then a flush.
func (s *stream) issue(c *nbdClient, rng *rand.Rand, under map[uint64]request, busy *[streamBlocks]bool) error {
	var r request
	if rng.IntN(64) == 0 {
		cookie, err := c.send(nbdFlush, 0, 0, 0, nil)
		under[cookie] = r
		return err
	}
	r.n = 1 + rng.IntN(16)
	for free := false; !free; {
		r.at, free = rng.IntN(streamBlocks-r.n), true
		for i := range r.n {
			free = free && !busy[r.at+i]
		}
	}
	data := make([]byte, r.n*streamBlock)
	s.mu.Lock()
	r.first = s.last + 1
	s.last += uint64(r.n)
	for i := range r.n {
		s.issued[r.at+i], busy[r.at+i] = r.first+uint64(i), true
		s.fill(data[i*streamBlock:][:streamBlock], r.at+i, r.first+uint64(i))
	}
	s.mu.Unlock()
	cookie, err := c.send(nbdWrite, uint16(rng.IntN(32)/31*nbdFUA), uint64(r.at)*streamBlock, len(data), data)
	under[cookie] = r
	return err
}

// garden takes, clones and deletes snapshots until a command fails, which is what it returns.
func (s *stream) garden(d *daemon, rng *rand.Rand) error {
	for n := 0; ; n++ {
		name := fmt.Sprintf("s%d-%d", time.Now().UnixNano(), n)
		s.mu.Lock()
		snap := &streamSnap{least: s.replied}
		s.snaps[name] = snap
		s.mu.Unlock()
		if got := d.try("snapshot", "create", s.volume+"@"+name); got.code != 0 {
			return fmt.Errorf("create snapshot: %s", got.stderr)
		}
		s.mu.Lock()
		snap.most, snap.done = s.issued, true
		s.mu.Unlock()
		clone := fmt.Sprintf("%s-of-%s", name, s.volume)
		for _, args := range [][]string{{"clone", s.volume + "@" + name, clone}, {"delete", clone, "--yes"}} {
			if got := d.try(append([]string{"volume"}, args...)...); got.code != 0 {
				return fmt.Errorf("volume %s: %s", args[0], got.stderr)
			}
		}
		if err := s.thin(d, rng); err != nil {
			return err
		}
	}
}

// thin deletes a snapshot when there are more than three.
func (s *stream) thin(d *daemon, rng *rand.Rand) error {
	var names []string
	s.mu.Lock()
	for name, snap := range s.snaps {
		if !snap.leaving {
			names = append(names, name)
		}
	}
	if len(names) <= 3 {
		s.mu.Unlock()
		return nil
	}
	name := names[rng.IntN(len(names))]
	s.snaps[name].leaving = true
	s.mu.Unlock()
	if got := d.try("snapshot", "delete", s.volume+"@"+name); got.code != 0 {
		return fmt.Errorf("delete snapshot: %s", got.stderr)
	}
	s.mu.Lock()
	delete(s.snaps, name)
	s.mu.Unlock()
	return nil
}

// verify judges the volume and its snapshots after a crash, and takes what it finds for what there is.
func (s *stream) verify(d *daemon) error {
	c, err := dialNBD(d.nbdSocket(), s.volume)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	all := make([]byte, streamBlocks*streamBlock)
	if err := c.read(all, 0); err != nil {
		return fmt.Errorf("read %s: %w", s.volume, err)
	}
	for at := range streamBlocks {
		number, err := s.number(all[at*streamBlock:][:streamBlock], at)
		if err != nil {
			return err
		}
		if number != s.replied[at] && number != s.issued[at] {
			return fmt.Errorf("%s: block %d holds write %d; %d was replied to, %d was issued", s.volume, at, number, s.replied[at], s.issued[at])
		}
		s.replied[at] = number
	}
	return s.verifySnapshots(d)
}

func (s *stream) verifySnapshots(d *daemon) error {
	var list []struct{ Name string }
	d.json(&list, "snapshot", "list", s.volume)
	there := map[string]bool{}
	for _, l := range list {
		there[l.Name] = true
		if s.snaps[l.Name] == nil {
			return fmt.Errorf("%s@%s was never made, or its deletion was replied to", s.volume, l.Name)
		}
	}
	for name, snap := range s.snaps {
		if !there[name] {
			if snap.done && !snap.leaving {
				return fmt.Errorf("%s@%s was replied to and is not there", s.volume, name)
			}
			delete(s.snaps, name)
			continue
		}
		if err := s.verifySnapshot(d, name, snap); err != nil {
			return err
		}
		snap.done, snap.leaving = true, false
	}
	s.issued = s.replied
	return nil
}

func (s *stream) verifySnapshot(d *daemon, name string, snap *streamSnap) error {
	if !snap.done {
		snap.most = s.issued
	}
	path := filepath.Join(d.t.TempDir(), name)
	d.run("volume", "export", s.volume+"@"+name, path)
	all, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	sum := sha256.Sum256(all)
	if snap.sum != [32]byte{} && sum != snap.sum {
		return fmt.Errorf("%s@%s has changed", s.volume, name)
	}
	snap.sum = sum
	for at := range streamBlocks {
		number, err := s.number(all[at*streamBlock:][:streamBlock], at)
		if err != nil {
			return fmt.Errorf("%s@%s: %w", s.volume, name, err)
		}
		if number < snap.least[at] || number > snap.most[at] {
			return fmt.Errorf("%s@%s: block %d holds write %d, want one from %d to %d", s.volume, name, at, number, snap.least[at], snap.most[at])
		}
	}
	return nil
}
