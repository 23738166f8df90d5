package blockstore

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

const (
	// surveyEvery is how long the surveyor rests at least while nobody waits for it, and surveyRest how many times as long as a survey took: it takes a tenth of one CPU at most. While writes wait it rests as long as it took.
	surveyEvery = 30 * time.Second
	surveyRest  = 9
	// surveyEntries bounds the table of chunks, whose entries have four bytes. In a store of more chunks one in 2, 4, 8, … stands for all.
	surveyEntries = 2 << 20
)

// surveyor measures what volumes with a bound on unique data alone hold, of all of them in one walk. It looks again when rows have changed. One goroutine.
type surveyor struct {
	s    *Store
	wake chan struct{}

	// Of the goroutine.
	rows    *counters                    // of the moment that figures are of
	figures map[block.VolumeID]ownFigure // of all volumes with a bound at that moment
	took    time.Duration
	endedAt time.Time

	mu struct {
		sync.Mutex
		began, ended uint64        // surveys
		asked        uint64        // the survey that somebody wants
		waiting      bool          // for it
		over         chan struct{} // closed and replaced when one has ended
	}
}

// ownFigure is what one volume alone holds in segments, in bytes, and by how much that may be off.
type ownFigure struct{ stored, err uint64 }

func newSurveyor(s *Store) *surveyor {
	u := &surveyor{s: s, wake: make(chan struct{}, 1)}
	u.mu.over = make(chan struct{})
	return u
}

// ask wants a survey that begins after this call, and returns its number. waiting has it bring the log down before.
func (u *surveyor) ask(waiting bool) uint64 {
	u.mu.Lock()
	number, news := u.mu.began+1, u.mu.asked <= u.mu.began
	u.mu.asked, u.mu.waiting = number, u.mu.waiting || waiting
	u.mu.Unlock()
	if news {
		select {
		case u.wake <- struct{}{}:
		default:
		}
	}
	return number
}

// next returns when a survey has ended that began after the call, or with the error of ctx, or block.ErrClosed.
func (u *surveyor) next(ctx context.Context) error {
	number := u.ask(true)
	for {
		u.mu.Lock()
		ended, over := u.mu.ended, u.mu.over
		u.mu.Unlock()
		if ended >= number {
			return nil
		}
		select {
		case <-over:
		case <-ctx.Done():
			return ctx.Err()
		case <-u.s.ctx.Done():
			return block.ErrClosed
		}
	}
}

// run surveys until ctx ends. While no volume has a bound it does nothing.
func (u *surveyor) run(ctx context.Context) {
	timer := time.NewTimer(surveyEvery)
	defer timer.Stop()
	for {
		none := len(u.s.uniqueBounds()) == 0
		u.mu.Lock()
		wanted := u.mu.asked > u.mu.began
		u.mu.Unlock()
		rest := max(surveyEvery, surveyRest*u.took)
		if wanted {
			rest = u.took
		}
		if pause := rest - time.Since(u.endedAt); pause > 0 || none && !wanted {
			timer.Reset(max(pause, time.Millisecond))
			if none && !wanted {
				timer.Reset(time.Hour) // setting a bound wakes
			}
			select {
			case <-ctx.Done():
				return
			case <-u.wake:
			case <-timer.C:
			}
			continue
		}
		err := u.survey(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			u.s.report("survey of what volumes alone hold", err)
			sleep(ctx, keeperRetry)
			u.ask(false)
		}
	}
}

// uniqueBounds lists the bounds that are in force.
func (s *Store) uniqueBounds() (all []*uniqueBound) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, v := range s.volumes {
		if q := v.quota.Load(); q != nil && q.own != nil {
			all = append(all, q.own)
		}
	}
	return all
}

// survey measures once and puts the figures in force. If somebody waits, what is in the log is brought down before, so that nothing counts twice and all is compressed.
func (u *surveyor) survey(ctx context.Context) error {
	u.mu.Lock()
	u.mu.began++
	number, waiting := u.mu.began, u.mu.waiting
	u.mu.waiting = false
	u.mu.Unlock()
	bounds := u.s.uniqueBounds() // those of who asks later are of the next
	if waiting && len(bounds) > 0 {
		if err := u.s.bringDown(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := u.s.flushTree(); err != nil { // what was deleted lately is in rows then
		return err
	}
	starts := make([]uniqueStart, len(bounds))
	for i, b := range bounds {
		starts[i] = b.start()
	}
	if rows := u.s.counted.Load(); len(bounds) > 0 && (rows != u.rows || !u.knows(bounds)) {
		figures, err := u.s.measureOwn(ctx, bounds)
		if err != nil {
			return err
		}
		u.rows, u.figures, u.took = rows, figures, time.Since(began)
	}
	u.endedAt = time.Now()
	for i, b := range bounds {
		b.publish(starts[i], u.figures[b.v.id], u.s.opts.Now())
	}
	u.mu.Lock()
	u.mu.ended = number
	close(u.mu.over)
	u.mu.over = make(chan struct{})
	u.mu.Unlock()
	return nil
}

func (u *surveyor) knows(bounds []*uniqueBound) bool {
	for _, b := range bounds {
		if _, ok := u.figures[b.v.id]; !ok {
			return false
		}
	}
	return true
}

// ownTable says of each sampled chunk which volume needs it: 0 none, ownOthers one without a bound or several, else the place of a bound, from 1 on.
type ownTable []uint32

const ownOthers = math.MaxUint32

func (t ownTable) add(n uint64, who uint32) {
	switch {
	case n >= uint64(len(t)):
	case t[n] == 0:
		t[n] = who
	case t[n] != who:
		t[n] = ownOthers
	}
}

// measureOwn surveys what the volumes of some bounds alone hold in segments, their snapshots and what their history keeps included. It reads the maps of all volumes and all chunk rows once, through a Pebble snapshot.
func (s *Store) measureOwn(ctx context.Context, bounds []*uniqueBound) (map[block.VolumeID]ownFigure, error) {
	snap := s.db.NewSnapshot()
	defer snap.Close()
	v := &survey{s: s, ctx: ctx, snap: snap, maps: extentmap.NewMap(snap, nil), out: &Explanation{}}
	if err := v.load("", nil); err != nil {
		return nil, err
	}
	most := min(surveyEntries, uint64(s.opts.MemoryBytes)/128)
	for v.shift = s.opts.explainShift; v.last>>v.shift+1 > most; v.shift++ {
	}
	table, places := make(ownTable, v.last>>v.shift+1), map[block.VolumeID]uint32{}
	for i, b := range bounds {
		places[b.v.id] = uint32(i + 1)
	}
	for _, u := range v.volumes {
		who, bound := places[u.row.ID]
		if !bound {
			who = ownOthers
		}
		if err := v.each(u, func(n uint64, _ bool) { table.add(n, who) }); err != nil {
			return nil, err
		}
	}
	sums := make([]struct{ stored, squares float64 }, len(bounds))
	err := v.rows(func(n uint64, row chunkRow, g *surveyedSegment) {
		if n >= uint64(len(table)) || table[n] == 0 || table[n] == ownOthers || g.row.TotalRaw == 0 {
			return
		}
		x := float64(row.RawLen) * float64(g.row.Size) / float64(g.row.TotalRaw)
		sum := &sums[table[n]-1]
		sum.stored += x
		sum.squares += x * x
	})
	if err != nil {
		return nil, err
	}
	figures, part := make(map[block.VolumeID]ownFigure, len(bounds)), 1/float64(uint64(1)<<v.shift)
	for i, b := range bounds {
		// The variance of the Horvitz-Thompson estimator of a total, where each is chosen with the same probability (Cochran, Sampling Techniques, 1977, 9A.7).
		off := 2 * math.Sqrt(sums[i].squares*(1-part)) / part
		figures[b.v.id] = ownFigure{stored: uint64(math.Round(sums[i].stored / part)), err: uint64(math.Round(off))}
	}
	return figures, nil
}
