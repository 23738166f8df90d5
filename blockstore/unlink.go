package blockstore

import (
	"errors"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// deadFiles are files of segments whose rows are gone. Each stays until two things are known:
//
//   - a delta is durable that began later: before that, the journaled state may still need what is in it;
//   - an audit that began later has marked all chunks that can be reached, and none of them is in it (audit.go).
//
// Files of checkpoints hold no chunks of volumes and need no audit.
type deadFiles struct {
	mu      sync.Mutex
	waiting []deadFile
	going   int // files that are being deleted: they wait no more, but their room is not there yet
	next    uint64
}

type deadFile struct {
	placement tiers.Placement
	id        block.SegmentID
	size      uint64 // bytes; 0 of a file that a start found without a row
	num       uint64
	gen       uint32 // a delta that ends this generation, or a later one, shows that the row is gone
	proven    bool   // an audit has shown that nothing needs it
	since     time.Time
}

// any reports whether files wait for a delta alone, or are being deleted.
func (d *deadFiles) any() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.going > 0 {
		return true
	}
	for i := range d.waiting {
		if d.waiting[i].proven {
			return true
		}
	}
	return false
}

func (d *deadFiles) add(f deadFile) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	f.num = d.next
	d.waiting = append(d.waiting, f)
}

// unproven returns the files that wait for an audit.
func (d *deadFiles) unproven() (files []deadFile) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.waiting {
		if !f.proven {
			files = append(files, f)
		}
	}
	return files
}

// prove says that nothing needs a file.
func (d *deadFiles) prove(num uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.waiting {
		if d.waiting[i].num == num {
			d.waiting[i].proven = true
		}
	}
}

// remove deletes the files that are proven dead and wait for generations up to gen. One that cannot be deleted is tried again with the next delta.
func (d *deadFiles) remove(set *tiers.Set, gen uint32) (err error) {
	var gone []deadFile
	d.mu.Lock()
	stay := d.waiting[:0]
	for _, f := range d.waiting {
		if f.proven && f.gen <= gen {
			gone = append(gone, f)
		} else {
			stay = append(stay, f)
		}
	}
	clear(d.waiting[len(stay):])
	d.waiting = stay
	d.going += len(gone)
	d.mu.Unlock()
	for _, f := range gone {
		if e := set.Delete(f.placement); e != nil {
			err = errors.Join(err, e)
			d.add(f)
		}
		d.mu.Lock()
		d.going--
		d.mu.Unlock()
	}
	return err
}

// unlink leaves the files of a segment without a row to the next audit and delta, or removes them when nothing is journaled.
func (s *Store) unlink(row *segmentRow) (err error) {
	if s.checkpoints.journaled.Load() == nil {
		for _, p := range row.Placement {
			err = errors.Join(err, s.tiers.Delete(p))
		}
		return err
	}
	gen, now := s.checkpoints.marks.gen.Load(), time.Now()
	for _, p := range row.Placement {
		s.checkpoints.files.add(deadFile{placement: p, id: row.ID, size: row.Size, gen: gen, proven: isMetadata(row), since: now})
	}
	s.collector.kick()
	return nil
}

// waitingNow counts all files that wait.
func (d *deadFiles) waitingNow() (files int, bytes uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.waiting {
		bytes += d.waiting[i].size
	}
	return len(d.waiting), bytes
}
