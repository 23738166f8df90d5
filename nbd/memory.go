package nbd

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Sizes of a lease's buffers, in bytes. A window of 32 requests of 4 KiB is 129 KiB with its headers, and so are its replies; a buffer that holds it
// whole serves it in one pass. BenchmarkServer at that depth: 128 KiB took a fifth longer, 64 KiB half as long again, 256 KiB gained nothing.
const (
	leaseInput  = 132 << 10
	leaseOutput = 132 << 10
	leaseSize   = leaseInput + leaseOutput
	// floorBuffer is the length of either buffer of a floor lease: a request of 4 KiB and its headers.
	floorBuffer = 4<<10 + 512
)

// lease is the working set of a reader that has input pending.
type lease struct {
	in, out []byte
	batch   []Write       // slices into in, or one slice into a buffer
	cookies []uint64      // of batch
	holes   []block.Range // scratch
	of      *tenant       // whose share it counts against, if it is full
}

// floor reports whether l is one of the small leases that there are for everyone.
func (l *lease) floor() bool { return len(l.in) == floorBuffer }

// clearBatch forgets the batch and with it the references to its payload.
func (l *lease) clearBatch() {
	clear(l.batch)
	l.batch = l.batch[:0]
	l.cookies = l.cookies[:0]
}

// Sizes of buffers: powers of two from 4 KiB to MaxPayload, each with room for the headers of a reply.
const (
	bufferSlack    = 64
	minBufferShift = 12
	maxBufferShift = 25
	maxBufferSize  = 1<<maxBufferShift + bufferSlack
	// mediumBuffer is the largest of the buffers for which a part of the budget is set aside.
	mediumBuffer = 2<<20 + bufferSlack
)

// buffer is memory for one long payload or one request at a worker.
type buffer struct {
	b     []byte // whole
	class int
	from  *semaphore.Weighted // the part of the budget that it counts against
	of    *tenant             // whose share of that it counts against; nil if there are no shares
	turn  *tenant             // whose turn ends with it, or nil
}

// tenant is a volume, with all its exports, and its share of the full leases, the medium buffers and the commands at workers: all but a quarter, however many connections it has.
type tenant struct {
	leases atomic.Int64 // full leases lent, and now and then for a moment those that were not to be had
	medium *semaphore.Weighted
	turn   *semaphore.Weighted // of 1, for requests beyond medium while the export is held to a rate
	conns  int                 // guarded by memory.mu

	commands atomic.Int64
}

// memory lends leases and buffers within one budget. The bytes that are lent at a time are bounded; what was given back waits in pools for
// the next borrower or for the garbage collector.
//
// Clients that hold much and do not move must not stop the others, so there are floors. When the leases are gone, or three quarters of them to one
// export, a connection still gets a small one, which holds a request of 4 KiB; connections are bounded, so these are. A request that fits in its
// connection's lease never waits for a buffer: without one its reader serves it alone. Buffers of up to 2 MiB have a part of the budget to themselves, of
// which one export gets three quarters at most, and use the rest when it lies idle; longer ones have the rest only. What may wait is a request of more
// than 2 MiB that cannot be done in pieces (pieces.go), for others; and one of more than a lease, for those of its own export or of several that stall.
//
// A device that is held to a rate makes its requests wait at will. So its buffers of up to 2 MiB come from its export's share only, and one at a time of its longer requests has a buffer, from when
// the rate lets it begin.
type memory struct {
	fullLeases  int64
	mediumBytes int64
	commands    atomic.Int64        // at workers, without buffers
	lent        atomic.Int64        // full leases lent, and now and then for a moment those that were not to be had
	medium      *semaphore.Weighted // counts bytes of buffers up to mediumBuffer
	large       *semaphore.Weighted // counts bytes of longer ones, and of others that find room
	free        sync.Pool           // of *lease, full
	freeFloor   sync.Pool           // of *lease, small
	buffers     [maxBufferShift - minBufferShift + 1]sync.Pool
	relieve     func() // called now and then while somebody waits or makes do with little
	relieved    atomic.Int64
	waiting     atomic.Int64
	onlySmall   atomic.Bool // tests: as if all full leases were lent

	mu      sync.Mutex
	tenants map[string]*tenant
}

// relieveEvery is how often relief is asked for.
const relieveEvery = time.Second

func newMemory(budget int64, relieve func()) *memory {
	buffers := budget / 4 * 3
	large := max(buffers/4*3, maxBufferSize)
	return &memory{
		fullLeases:  budget / 4 / leaseSize,
		mediumBytes: buffers - large,
		medium:      semaphore.NewWeighted(buffers - large),
		large:       semaphore.NewWeighted(large),
		relieve:     relieve,
		tenants:     make(map[string]*tenant),
	}
}

// maxCommands bounds the commands without data that are at workers, each with a goroutine of its own: some tens of MiB. Beyond it readers do them by themselves.
const maxCommands = 4096

// enlist counts one more command at a worker, or reports that there are too many.
func (m *memory) enlist(t *tenant) bool {
	if t.commands.Add(1) <= maxCommands/4*3 {
		if m.commands.Add(1) <= maxCommands {
			return true
		}
		m.commands.Add(-1)
	}
	t.commands.Add(-1)
	return false
}

// discharge undoes enlist.
func (m *memory) discharge(t *tenant) {
	t.commands.Add(-1)
	m.commands.Add(-1)
}

// admit counts a connection of a tenant in, and returns the share that it has a part of.
func (m *memory) admit(name string) *tenant {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tenants[name]
	if t == nil {
		t = &tenant{medium: semaphore.NewWeighted(m.mediumBytes / 4 * 3), turn: semaphore.NewWeighted(1)}
		m.tenants[name] = t
	}
	t.conns++
	return t
}

// dismiss undoes admit.
func (m *memory) dismiss(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tenants[name]
	if t.conns--; t.conns == 0 {
		delete(m.tenants, name)
	}
}

// lend returns a lease for t, a small one if there is no other. It does not wait.
func (m *memory) lend(t *tenant) *lease {
	if !m.onlySmall.Load() && m.countLease(t) {
		l, ok := m.free.Get().(*lease)
		if !ok {
			l = &lease{in: make([]byte, leaseInput), out: make([]byte, leaseOutput)}
		}
		l.of = t
		return l
	}
	if l, ok := m.freeFloor.Get().(*lease); ok {
		return l
	}
	return &lease{in: make([]byte, floorBuffer), out: make([]byte, floorBuffer)}
}

// countLease reports whether t may have one more full lease, and counts it.
func (m *memory) countLease(t *tenant) bool {
	if t.leases.Add(1) <= m.fullLeases/4*3 {
		if m.lent.Add(1) <= m.fullLeases {
			return true
		}
		m.lent.Add(-1)
	}
	t.leases.Add(-1)
	return false
}

// returnLease takes a lease back.
func (m *memory) returnLease(l *lease) {
	l.clearBatch()
	if l.floor() {
		m.freeFloor.Put(l)
		return
	}
	l.of.leases.Add(-1)
	l.of = nil
	m.free.Put(l)
	m.lent.Add(-1)
}

// makingDo asks for relief on behalf of a reader with a small lease, unless somebody just did.
func (m *memory) makingDo() {
	now := time.Now().UnixNano()
	last := m.relieved.Load()
	if now-last > int64(relieveEvery) && m.relieved.CompareAndSwap(last, now) {
		m.relieve()
	}
}

// bufferClass returns the index of the smallest class that holds n bytes and bufferSlack more.
func bufferClass(n int) int {
	return max(0, bits.Len(uint(max(n, 1)-1))-minBufferShift)
}

// classSize returns the length of the buffers of a class, in bytes.
func classSize(class int) int64 { return 1<<(class+minBufferShift) + bufferSlack }

// tryBuffer returns a buffer of a class for t, or nil if the budget is spent.
func (m *memory) tryBuffer(class int, t *tenant) *buffer {
	if b := m.tryShare(class, t); b != nil {
		return b
	}
	return m.tryRest(class)
}

// tryShare is tryBuffer from the part of the budget that exports have shares of.
func (m *memory) tryShare(class int, t *tenant) *buffer {
	size := classSize(class)
	if size > mediumBuffer || !t.medium.TryAcquire(size) {
		return nil
	}
	if !m.medium.TryAcquire(size) {
		t.medium.Release(size)
		return nil
	}
	return m.takeBuffer(class, m.medium, t)
}

// tryRest is tryBuffer from the part of the budget that is for everybody.
func (m *memory) tryRest(class int) *buffer {
	if !m.large.TryAcquire(classSize(class)) {
		return nil
	}
	return m.takeBuffer(class, m.large, nil)
}

// waitBuffer is tryBuffer that waits its turn. The error is that of ctx.
func (m *memory) waitBuffer(ctx context.Context, class int, t *tenant) (*buffer, error) {
	if b := m.tryBuffer(class, t); b != nil {
		return b, nil
	}
	if size := classSize(class); size > mediumBuffer {
		if err := m.wait(ctx, m.large, size); err != nil {
			return nil, err
		}
		return m.takeBuffer(class, m.large, nil), nil
	}
	return m.waitShare(ctx, class, t)
}

// waitShare is tryShare that waits its turn, for a class that there are shares of.
func (m *memory) waitShare(ctx context.Context, class int, t *tenant) (*buffer, error) {
	size := classSize(class)
	if err := m.wait(ctx, t.medium, size); err != nil {
		return nil, err
	}
	if err := m.wait(ctx, m.medium, size); err != nil {
		t.medium.Release(size)
		return nil, err
	}
	return m.takeBuffer(class, m.medium, t), nil
}

func (m *memory) takeBuffer(class int, from *semaphore.Weighted, of *tenant) *buffer {
	b, ok := m.buffers[class].Get().(*buffer)
	if !ok {
		b = &buffer{b: make([]byte, classSize(class)), class: class}
	}
	b.from, b.of = from, of
	return b
}

// returnBuffer takes a buffer back.
func (m *memory) returnBuffer(b *buffer) {
	from, of, turn := b.from, b.of, b.turn
	b.turn = nil
	m.buffers[b.class].Put(b)
	from.Release(classSize(b.class))
	if of != nil {
		of.medium.Release(classSize(b.class))
	}
	if turn != nil {
		turn.turn.Release(1)
	}
}

// wait acquires n of sem, asking for relief as long as it has to wait.
func (m *memory) wait(ctx context.Context, sem *semaphore.Weighted, n int64) error {
	if sem.TryAcquire(n) {
		return nil
	}
	m.waiting.Add(1)
	defer m.waiting.Add(-1)
	done := make(chan struct{})
	var relief sync.WaitGroup
	relief.Go(func() {
		tick := time.NewTicker(relieveEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				m.relieve()
			}
		}
	})
	err := sem.Acquire(ctx, n)
	close(done)
	relief.Wait()
	return err
}
