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

// Sizes of a lease's buffers, in bytes. At depth 32 of 4 KiB, 64 KiB measured slower and 256 KiB no faster.
const (
	leaseInput  = 128 << 10
	leaseOutput = 128 << 10
	leaseSize   = leaseInput + leaseOutput
)

// lease is the working set of a reader that has input pending.
type lease struct {
	in, out []byte
	batch   []Write       // slices into in, or one slice into a buffer
	cookies []uint64      // of batch
	holes   []block.Range // scratch
}

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
)

// buffer is memory for one long payload or one request at a worker.
type buffer struct {
	b     []byte // whole
	class int
}

// memory lends leases and buffers within one budget. The bytes that are lent at a time are bounded; what was given back waits in pools for
// the next borrower or for the garbage collector.
type memory struct {
	leases  *semaphore.Weighted // counts leases
	bytes   *semaphore.Weighted // counts bytes of buffers
	free    sync.Pool           // of *lease
	buffers [maxBufferShift - minBufferShift + 1]sync.Pool
	relieve func() // called now and then while somebody waits
	waiting atomic.Int64
}

// relieveEvery is how often a waiter asks for relief.
const relieveEvery = time.Second

func newMemory(budget int64, relieve func()) *memory {
	return &memory{
		leases:  semaphore.NewWeighted(budget / 4 / leaseSize),
		bytes:   semaphore.NewWeighted(budget / 4 * 3),
		relieve: relieve,
	}
}

// tryLease returns a lease, or nil if all are lent.
func (m *memory) tryLease() *lease {
	if !m.leases.TryAcquire(1) {
		return nil
	}
	return m.takeLease()
}

// waitLease is tryLease that waits its turn. The error is that of ctx.
func (m *memory) waitLease(ctx context.Context) (*lease, error) {
	if err := m.wait(ctx, m.leases, 1); err != nil {
		return nil, err
	}
	return m.takeLease(), nil
}

func (m *memory) takeLease() *lease {
	if l, ok := m.free.Get().(*lease); ok {
		return l
	}
	return &lease{in: make([]byte, leaseInput), out: make([]byte, leaseOutput)}
}

// returnLease takes a lease back.
func (m *memory) returnLease(l *lease) {
	l.clearBatch()
	m.free.Put(l)
	m.leases.Release(1)
}

// bufferClass returns the index of the smallest class that holds n bytes and bufferSlack more.
func bufferClass(n int) int {
	return max(0, bits.Len(uint(max(n, 1)-1))-minBufferShift)
}

// classSize returns the length of the buffers of a class, in bytes.
func classSize(class int) int64 { return 1<<(class+minBufferShift) + bufferSlack }

// tryBuffer returns a buffer of a class, or nil if the budget is spent.
func (m *memory) tryBuffer(class int) *buffer {
	if !m.bytes.TryAcquire(classSize(class)) {
		return nil
	}
	return m.takeBuffer(class)
}

// waitBuffer is tryBuffer that waits its turn. The error is that of ctx.
func (m *memory) waitBuffer(ctx context.Context, class int) (*buffer, error) {
	if err := m.wait(ctx, m.bytes, classSize(class)); err != nil {
		return nil, err
	}
	return m.takeBuffer(class), nil
}

func (m *memory) takeBuffer(class int) *buffer {
	if b, ok := m.buffers[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, classSize(class)), class: class}
}

// returnBuffer takes a buffer back.
func (m *memory) returnBuffer(b *buffer) {
	m.buffers[b.class].Put(b)
	m.bytes.Release(classSize(b.class))
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
