package blockstore

import (
	"context"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// extentsPerStep bounds one metadata batch of background work, so that destage waits for it only a few milliseconds.
const extentsPerStep = 20_000

// jobsPerStep bounds the jobs of one batch: a trim of many parts of a volume leaves thousands that are as small as a page.
const jobsPerStep = 256

// dueJob is a job with the key of its row.
type dueJob struct {
	node nodeID
	num  uint64
	extentmap.Job
}

// dueJobs returns the oldest jobs of the nodes that have some, or those that a settle waits for as long as there are such.
func (s *Store) dueJobs() (due []dueJob, err error) {
	var others []dueJob
	err = extentmap.ScanJobs(s.db, 0, func(owner block.VolumeID, num uint64, j extentmap.Job) (bool, error) {
		if s.dueFirst.hasJob(num) {
			due = append(due, dueJob{nodeID(owner), num, j})
		} else if len(others) < jobsPerStep {
			others = append(others, dueJob{nodeID(owner), num, j})
		}
		return len(due) < jobsPerStep && (s.thorough.Load() > 0 || len(others) < jobsPerStep), nil
	})
	if len(due) == 0 {
		due = others
	}
	return due, err
}

// stepJobs frees a part of the oldest subtrees that were cut off, and reports whether there were any.
func (s *Store) stepJobs(ctx context.Context) (bool, error) {
	if !s.worker.jobs.Load() {
		return false, nil
	}
	m := s.beginMeta()
	due, err := s.dueJobs()
	if err != nil || len(due) == 0 {
		s.worker.jobs.Store(err != nil)
		m.abort()
		return false, err
	}
	f := &freeing{m: m, ctx: ctx, dead: extentmap.NewDeadlist(m.nextRow), left: extentsPerStep, bytes: map[*node]int64{}}
	for i := range due {
		if err := f.job(&due[i]); err != nil {
			m.abort()
			return false, fmt.Errorf("free subtree %d of node %d: %w", due[i].Subtree.ID, due[i].node, err)
		}
		if f.left <= 0 {
			break
		}
	}
	if err := f.finish(); err != nil {
		m.abort()
		return false, err
	}
	return true, m.commit()
}

// freeing is one batch that frees subtrees.
type freeing struct {
	m     *metaBatch
	ctx   context.Context // of the one step it is made for
	dead  *extentmap.Deadlist
	left  int             // extents until the batch is large enough; a page or node counts as some
	bytes map[*node]int64 // that are gone from the maps of nodes
}

// rowCost is what a page or node counts as beside its extents.
const rowCost = 16

// job works a job off as far as the batch takes it, and brings its row up to date.
func (f *freeing) job(j *dueJob) error {
	done, err := f.subtree(j.node, &j.Job)
	if err != nil {
		return err
	}
	key := extentmap.JobKey(block.VolumeID(j.node), j.num)
	if done {
		f.m.delete(key)
		return nil
	}
	return f.m.b.Set(key, extentmap.EncodeJob(j.Job), nil)
}

// subtree walks a part of a subtree that is dead in a node and moves the job's cursor. What was born in the node is freed. What is inherited goes to the node's deadlist, or
// is forgotten when the node itself goes and the parent keeps it.
func (f *freeing) subtree(id nodeID, job *extentmap.Job) (done bool, err error) {
	m, s := f.m, f.m.s
	s.tree.RLock()
	n := s.nodes[id]
	if n == nil {
		s.tree.RUnlock()
		return false, &block.CorruptError{Source: fmt.Sprintf("job of node %d", id), Want: "the node", Got: "none"}
	}
	bound, leaf := block.Epoch(n.bound), n.abandonedLocked()
	s.tree.RUnlock()

	inherit := func(birth block.Epoch, d extentmap.Dead) {
		if !leaf {
			f.dead.Add(deadOwner, block.Epoch(id), birth, d)
		}
	}
	more := func(cost int) bool {
		f.left -= cost
		return f.left > 0
	}
	freed := int64(0)
	next, done, err := s.maps.Walk(f.ctx, job.Subtree, bound, job.Cursor, extentmap.Visitor{
		Page: func(p extentmap.Page) bool {
			for i := range p.Len() {
				x := p.Extent(i)
				if x.Kind != extentmap.KindChunk {
					continue
				}
				freed += int64(x.Len)
				if x.Birth > bound {
					m.refs.Add(x.Chunk, -1)
				} else {
					inherit(x.Birth, extentmap.Dead{Kind: extentmap.DeadChunk, ID: uint64(x.Chunk)})
				}
			}
			p.Parts(func(id uint64, birth block.Epoch) {
				if birth > bound {
					m.delete(extentmap.PageKey(id))
				} else {
					inherit(birth, extentmap.Dead{Kind: extentmap.DeadPage, ID: id})
				}
			})
			m.delete(extentmap.PageKey(p.ID()))
			return more(p.Len() + rowCost)
		},
		Node: func(t extentmap.Subtree) bool {
			m.delete(extentmap.NodeKey(t.ID))
			return more(rowCost)
		},
		Older: func(t extentmap.Subtree) bool {
			inherit(t.Birth, extentmap.Dead{Kind: extentmap.DeadSubtree, ID: t.ID, Level: t.Level, Region: t.Region})
			return more(rowCost)
		},
	})
	if err != nil {
		return false, err
	}
	job.Cursor = next
	if !leaf {
		f.bytes[n] += freed
	}
	return done, nil
}

// finish writes what the jobs of the batch have in common.
func (f *freeing) finish() error {
	for n, bytes := range f.bytes {
		f.m.shrinkMapped(n, bytes)
	}
	return f.dead.Flush(f.m.b)
}

// shrinkMapped books that bytes are gone from the map of a node and of the nodes that began as it afterwards.
func (m *metaBatch) shrinkMapped(n *node, bytes int64) {
	if bytes == 0 {
		return
	}
	s := m.s
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, c := range s.nodes {
		for p := c; p != nil; p = p.parent.Load() {
			if p == n && c.flags&nodeStarted != 0 {
				m.grown[c] -= bytes
				break
			}
		}
	}
}
