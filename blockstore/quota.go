package blockstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// VolumeQuota bounds how much data a volume may refer to and what it alone may hold, and says how much of the file system is kept for it; 0 is no bound and nothing kept. What it refers to and what is kept count data as the guest
// wrote it, before dedup and compression, so that what a volume may do does not depend on what others hold; zeroes and trimmed blocks do not count, and snapshots do not.
type VolumeQuota struct {
	// ReferencedBytes is the most data that the volume may refer to. A write that would add to it beyond that is ErrNoSpace; overwrites, trims and zeroes go on.
	ReferencedBytes uint64
	// ReservedBytes are kept for the volume: until it refers to as much, the room for the rest is no other volume's.
	ReservedBytes uint64
	// UniqueBytes is the most that the volume and its snapshots may hold in segments that no other volume needs, after dedup and compression. Any data that is written beyond that is ErrNoSpace, overwrites too, as a snapshot
	// may hold what they replace; trims and zeroes go on. It is measured from time to time (uniquequota.go says what that may let through).
	UniqueBytes uint64
}

// None reports whether nothing is bounded and nothing kept.
func (q VolumeQuota) None() bool { return q == VolumeQuota{} }

// Validate reports the first value that is out of bounds.
func (q VolumeQuota) Validate() error {
	for _, n := range []uint64{q.ReferencedBytes, q.ReservedBytes, q.UniqueBytes} {
		if n > block.MaxVolumeSize {
			return fmt.Errorf("quota of %d bytes: want at most %d, or 0 for none: %w", n, uint64(block.MaxVolumeSize), block.ErrInvalid)
		}
	}
	for _, n := range []uint64{q.ReferencedBytes, q.UniqueBytes} {
		if n > 0 && n < block.Size {
			return fmt.Errorf("quota of %d bytes: want at least %d, or 0 for none: %w", n, block.Size, block.ErrInvalid)
		}
	}
	if q.ReferencedBytes > 0 && q.ReservedBytes > q.ReferencedBytes {
		return fmt.Errorf("reservation of %s is above the quota of %s: %w", units.Size(q.ReservedBytes), units.Size(q.ReferencedBytes), block.ErrInvalid)
	}
	return nil
}

// QuotaKind says which bound of a quota something is about.
type QuotaKind uint8

const (
	QuotaReferenced QuotaKind = iota // VolumeQuota.ReferencedBytes
	QuotaUnique                      // VolumeQuota.UniqueBytes
)

// FillState says how full something is that has a bound.
type FillState uint8

// A FillState goes down again when two percent less than its mark are used, so that it does not flap. The marks are Options.Marks.
const (
	FillOK       FillState = iota // less than the first mark, 85 % by default
	FillNear                      // that or more
	FillCritical                  // the second mark or more, 95 % by default
	FillFull                      // writes are refused
)

// String is "ok", "near full", "nearly full" or "full".
func (f FillState) String() string {
	switch f {
	case FillOK:
		return "ok"
	case FillNear:
		return "near full"
	case FillCritical:
		return "nearly full"
	case FillFull:
		return "full"
	}
	return fmt.Sprintf("state %d", uint8(f))
}

// fillState judges parts of 1000, coming from a state. full says that somebody was refused.
func fillState(from FillState, used, limit uint64, full bool, marks twoMarks) FillState {
	if full {
		return FillFull
	}
	at := func(percent int, state FillState) bool {
		mark := 10 * percent
		if from >= state {
			mark -= 20
		}
		return float64(used)*1000 >= float64(limit)*float64(mark)
	}
	switch {
	case at(marks.critical, FillCritical):
		return FillCritical
	case at(marks.near, FillNear):
		return FillNear
	}
	return FillOK
}

// exactFor is how long the result of a close look at a volume near its quota is taken for true, if the volume has discarded nothing since.
const exactFor = 2 * time.Second

// quota holds a volume to its quota. A write that fits takes a few atomic steps; near the bound the store looks closer. The bound is kept to the byte, but for writes that were in flight when it was set: what is counted is
// never less than what the volume refers to.
type quota struct {
	v     *Volume
	limit VolumeQuota

	left     atomic.Int64 // bytes that may be admitted before the volume is measured again
	flying   atomic.Int64 // bytes admitted and not yet in the overlay
	admitted atomic.Int64 // all bytes ever admitted that may be new
	state    atomic.Int32 // FillState
	refused  atomic.Int64 // when a write was refused last, ns since the epoch

	mu    sync.Mutex // one measure or close look at a time
	exact closeLook

	own *uniqueBound // nil: no bound on unique data
}

// closeLook is an exact count of what a volume refers to. It is relied on while nothing but what was admitted since can have changed it.
type closeLook struct {
	used               uint64
	at                 time.Time // zero: never
	head               *node
	admitted, discards int64
}

// SetVolumeQuota puts a quota in force at once. It ends with the process: whoever sets it keeps it. ErrNoSpace when so much is not free that could be kept, unless restoring what was agreed to before.
func (s *Store) SetVolumeQuota(name string, limit VolumeQuota, restoring bool) error {
	err := limit.Validate()
	var v *Volume
	if err == nil {
		v, err = s.lookupVolume(name)
	}
	if err == nil && !restoring {
		err = s.reservable(v, limit.ReservedBytes)
	}
	if err != nil {
		return fmt.Errorf("set the quota of volume %q: %w", name, err)
	}
	var next *quota
	if !limit.None() {
		next = &quota{v: v, limit: limit}
		next.setUnique(v.quota.Load())
	}
	old, was := v.quota.Swap(next), FillOK
	if old != nil {
		was = FillState(old.state.Load())
	}
	v.share.reserved.Store(0)
	if next == nil || limit.ReferencedBytes == 0 {
		s.tellFill(v, QuotaReferenced, was, FillOK, v.referenced(), 0)
	}
	s.beginUnique(v, old, next)
	if next != nil {
		next.state.Store(int32(was))
		next.measure()
	}
	return s.space.checkDisk()
}

// reservable reports whether so many bytes can be kept for a volume beyond what it has.
func (s *Store) reservable(v *Volume, want uint64) error {
	if err := s.space.checkDisk(); err != nil {
		return err
	}
	used, kept := v.referenced(), int64(0)
	if q := v.quota.Load(); q != nil {
		kept = s.roomFor(int64(q.outstanding()))
	}
	if want <= used {
		return nil
	}
	need, free := s.roomFor(int64(want-used)), max(0, s.space.free.Load())+kept // what is kept for it already is not in what is free
	if need > free {
		return fmt.Errorf("to keep %s beyond the %s it has, with room to write them, takes %s, and %s are free: %w",
			units.Size(want-used).Human(), units.Size(used).Human(), units.Size(need).Human(), units.Size(free).Human(), block.ErrNoSpace)
	}
	return nil
}

// referenced is what the volume refers to now, at least: what is in the log and overwrites what is in the map counts twice until it is destaged.
func (v *Volume) referenced() uint64 {
	v.s.tree.RLock()
	defer v.s.tree.RUnlock()
	return v.referencedLocked()
}

func (v *Volume) referencedLocked() uint64 {
	used := uint64(0)
	for n := v.head.Load(); n != nil; n = n.parent.Load() {
		used += uint64(n.layer.Blocks()) * block.Size
		if n.flags&nodeStarted != 0 {
			return used + n.mapped
		}
	}
	return used
}

// outstanding is how much is to be kept for the volume.
func (q *quota) outstanding() uint64 {
	used := q.v.referenced()
	return q.limit.ReservedBytes - min(q.limit.ReservedBytes, used)
}

// measure reads what the volume refers to and gives out what may be written until it is to be read again: a hundredth of the quota at most, so that states are told in time. While a close look is under way it does nothing.
func (q *quota) measure() {
	limit := q.limit.ReferencedBytes
	if limit == 0 || !q.mu.TryLock() {
		return
	}
	defer q.mu.Unlock()
	q.left.Store(0)
	used := uint64(max(0, q.flying.Load())) // before the overlay is read: what lands meanwhile counts twice and never not at all
	used += q.v.referenced()
	q.left.Store(int64(min(limit-min(limit, used), max(limit/100, 1<<20))))
	q.tell(used, false)
}

// tell moves the state to where so many bytes put it.
func (q *quota) tell(used uint64, full bool) {
	if !full && time.Now().UnixNano()-q.refused.Load() < int64(exactFor) && used+used/50 >= q.limit.ReferencedBytes {
		full = true // it was refused just now, and little has changed
	}
	for {
		old := FillState(q.state.Load())
		state := fillState(old, used, q.limit.ReferencedBytes, full, q.v.s.opts.Marks.quota())
		if state == old {
			return
		}
		if q.state.CompareAndSwap(int32(old), int32(state)) {
			q.v.s.tellFill(q.v, QuotaReferenced, old, state, used, q.limit.ReferencedBytes)
			return
		}
	}
}

func (s *Store) tellFill(v *Volume, kind QuotaKind, old, state FillState, used, limit uint64) {
	if f := s.opts.Events.QuotaState; f != nil && old != state {
		s.tree.RLock()
		name := v.name
		s.tree.RUnlock()
		f(name, kind, state, used, limit)
	}
}

// take books n bytes if as many are known to fit. Whoever took them calls landed.
func (q *quota) take(n int64) bool {
	if q.limit.ReferencedBytes == 0 {
		return true
	}
	q.flying.Add(n)
	if q.left.Add(-n) >= 0 {
		q.admitted.Add(n)
		return true
	}
	q.left.Add(n)
	q.flying.Add(-n)
	return false
}

func (q *quota) landed(n int64) {
	if q == nil {
		return
	}
	if q.limit.ReferencedBytes > 0 {
		q.flying.Add(-n)
	}
	q.own.landed(n)
}

// admit waits until a batch of n bytes may be logged, or returns ErrNoSpace. What it costs near the bound: the map is asked which blocks of the batch are new, and the volume's data in the log is brought down, so that
// nothing counts twice. Later writes are judged by the same count while nothing was discarded.
func (q *quota) admit(ctx context.Context, batch []block.Write, n int64) error {
	if q.take(n) {
		return nil
	}
	q.measure()
	if q.take(n) {
		return nil
	}
	growth, err := q.v.growth(ctx, batch)
	if err != nil {
		return err
	}
	if growth == 0 {
		q.flying.Add(n)
		return nil
	}
	return q.judge(ctx, growth, n)
}

// judge decides about a growth by an exact count of what the volume refers to, and makes one if there is none that can be relied on.
func (q *quota) judge(ctx context.Context, growth uint64, n int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.left.Store(0) // nobody is admitted by the last measure any more
	v, limit := q.v, q.limit.ReferencedBytes
	if x := &q.exact; growth <= limit && (x.at.IsZero() || time.Since(x.at) > exactFor || x.discards != v.counters.discards.Load() || x.head != v.head.Load()) {
		now := closeLook{at: time.Now(), head: v.head.Load(), discards: v.counters.discards.Load(), admitted: q.admitted.Load()}
		now.used = uint64(max(0, q.flying.Load()))
		used, err := v.s.lookClosely(ctx, v)
		if err != nil {
			return err
		}
		now.used += used
		*x = now
	}
	used := q.exact.used + uint64(q.admitted.Load()-q.exact.admitted)
	if growth <= limit && used <= limit-growth {
		q.admitted.Add(int64(growth))
		q.flying.Add(n)
		return nil
	}
	q.refused.Store(time.Now().UnixNano())
	q.tell(limit, true)
	return fmt.Errorf("write volume %d: its quota of %s is used up; trim something in the guest, or raise it with hv-storage-fabric volume quota set: %w", v.id, units.Size(limit).Human(), block.ErrNoSpace)
}

// lookClosely brings down what is in the log and returns what the volume refers to then.
func (s *Store) lookClosely(ctx context.Context, v *Volume) (uint64, error) {
	if err := s.bringDown(ctx); err != nil {
		return 0, err
	}
	return v.referenced(), nil // at least so much; whoever needs more than that is refused
}

// bringDown brings down what is in the log, as far as that goes within the patience of a guest and works at all, and gives back what became dead by that. Errors are those of ctx and block.ErrClosed.
func (s *Store) bringDown(ctx context.Context) error {
	defer s.hurry()()
	mark, kick, down := s.logMark(), uint64(0), false
	late := time.NewTimer(diskPatience)
	defer late.Stop()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		if !down && s.downTo(mark) {
			down, kick = true, s.worker.kick()
		}
		if down && s.worker.idleSince(kick) || s.lastingFault() != nil {
			return nil
		}
		s.destager.kick()
		select {
		case <-tick.C:
		case <-late.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return block.ErrClosed
		}
	}
}

// growth is how many bytes of a batch's blocks hold no data now. Blocks that two writes of a batch name count twice.
func (v *Volume) growth(ctx context.Context, batch []block.Write) (growth uint64, err error) {
	d := Device{v: v}
	for _, w := range batch {
		first, count := blocksOf(w.Off, uint64(len(w.Data)))
		r := block.Range{Off: first * block.Size, Len: min(count*block.Size, v.size.Load()-first*block.Size)}
		err := d.Depths(ctx, r, func(n uint64, depth uint32) bool {
			if depth == 0 {
				growth += n
			}
			return true
		})
		if err != nil {
			return 0, err
		}
	}
	return growth, nil
}

// takeQuota books a batch at once, or reports that it must be looked at closer. The quota that is returned wants to know when the batch has landed.
func (v *Volume) takeQuota(n int64) (*quota, bool) {
	q := v.quota.Load()
	if q == nil {
		return nil, true
	}
	if !q.own.take(n) {
		return nil, false
	}
	if !q.take(n) {
		q.own.landed(n)
		return nil, false
	}
	return q, true
}

// waitQuota waits until a batch fits into the volume's quota.
func (v *Volume) waitQuota(ctx context.Context, batch []block.Write, n int64) (*quota, error) {
	q := v.quota.Load()
	if q == nil {
		return nil, nil
	}
	if err := q.own.admit(ctx, n); err != nil {
		return nil, err
	}
	if err := q.admit(ctx, batch, n); err != nil {
		q.own.landed(n)
		return nil, err
	}
	return q, nil
}

// quotaNow returns the quota in force, how full it is, and what its bound on unique data is measured by.
func (v *Volume) quotaNow() (VolumeQuota, FillState, UniqueUse) {
	q := v.quota.Load()
	if q == nil {
		return VolumeQuota{}, FillOK, UniqueUse{}
	}
	use, state := q.own.now()
	return q.limit, max(state, FillState(q.state.Load())), use
}

// keepReserved measures the volumes that have quotas, tells each how much it may take of what is kept for it, and returns how much of the file system that needs.
func (s *Store) keepReserved() (sum int64) {
	s.tree.RLock()
	var all []*quota
	for _, v := range s.volumes {
		if q := v.quota.Load(); q != nil {
			all = append(all, q)
		}
	}
	s.tree.RUnlock()
	for _, q := range all {
		q.measure()
		if q.limit.ReservedBytes > 0 {
			n := int64(q.outstanding())
			q.v.share.reserved.Store(n)
			sum += n
		}
	}
	return s.roomFor(sum)
}

// roomFor is what n bytes of new data take of the file system while they are written: segments, with their frames, directories and maps, and before that the log, unless that has the files already.
func (s *Store) roomFor(n int64) int64 {
	u := s.log.Usage()
	return n + n/32 + min(n, max(0, u.Cap+s.opts.StreamBytes-u.Live-max(0, int64(u.Spare)-1)*s.opts.LogFileBytes))
}
