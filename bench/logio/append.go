package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	page     = 4096
	readSpan = 128 << 20 // what is read back lies in the last so many bytes that were written
)

// way is how the log is written and read.
type way struct {
	name string
	open int // flag of open(2)
	each int // flag of pwritev2(2)
}

// ring appends to the file, and begins anew at its end.
type ring struct {
	fd   int
	w    way
	size int64
	end  int64  // of the last record
	buf  []byte // O_DIRECT only: the append, aligned, with what stands before it in its first page
	vec  [][]byte
	far  atomic.Int64 // bytes that were written ever, for the reader
}

func aligned(n int) []byte {
	b := make([]byte, n+page)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (page - 1)
	return b[skip:][:n:n]
}

var zeroes [page]byte

// append writes records, each of a head and a payload, and what is missing to the end of the page.
func (r *ring) append(records int, head, payload []byte) error {
	need := int64(records * (len(head) + len(payload)))
	if r.end+need+page > r.size {
		r.end = 0
	}
	first := r.end &^ (page - 1)
	last := (r.end + need + page - 1) &^ (page - 1)
	off := r.end
	r.vec = r.vec[:0]
	if r.w.open&unix.O_DIRECT != 0 {
		n := r.end - first
		for range records {
			n += int64(copy(r.buf[n:], head))
			n += int64(copy(r.buf[n:], payload))
		}
		clear(r.buf[n : last-first])
		r.vec, off = append(r.vec, r.buf[:last-first]), first
	} else {
		for range records {
			r.vec = append(r.vec, head, payload)
		}
		r.vec = append(r.vec, zeroes[:last-r.end-need])
	}
	n, err := unix.Pwritev2(r.fd, r.vec, off, r.w.each)
	if err == nil && int64(n) != last-off {
		err = io.ErrShortWrite
	}
	r.end += need
	if r.buf != nil { // the last page is written again with the next append
		keep := r.end &^ (page - 1)
		if keep < last {
			copy(r.buf, r.buf[keep-first:][:page])
		}
	}
	r.far.Add(last - first)
	return err
}

// measure appends for a while.
func measure(path string, size int64, m mix, w way, length time.Duration) (r result, err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|w.open, 0)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	head, payload := make([]byte, 96+20*m.record/page), make([]byte, m.record)
	for i := range payload {
		payload[i] = byte(rand.Uint32())
	}
	g := &ring{fd: fd, w: w, size: size}
	if w.open&unix.O_DIRECT != 0 {
		g.buf = aligned(m.records*(len(head)+len(payload)) + 2*page)
	}
	if err := unix.Fsync(fd); err != nil {
		return r, err
	}
	stop := make(chan struct{})
	done := make(chan error, 1)
	if m.read {
		go func() { done <- readBack(g, stop, &r) }()
	} else {
		done <- nil
	}
	cpu, device, began := processTime(), deviceBytes(fd), time.Now()
	unsynced := int64(0)
	for time.Since(began) < length && err == nil {
		at := time.Now()
		err = g.append(m.records, head, payload)
		if unsynced += int64(m.records * m.record); err == nil && unsynced >= m.sync && w.each == 0 {
			err, unsynced = unix.Fdatasync(fd), 0
		}
		r.latencies = append(r.latencies, time.Since(at))
		r.bytes += int64(m.records * m.record)
		r.appends++
	}
	if err == nil {
		err = unix.Fdatasync(fd)
	}
	r.took = time.Since(began)
	close(stop)
	err = errors.Join(err, <-done)
	r.cpu, r.device = processTime()-cpu, deviceBytes(fd)-device
	return r, err
}

// readBack reads blocks of what was written last, as guests do: out of a mapping where the log lies in the page cache, from the device where it does not.
func readBack(g *ring, stop chan struct{}, r *result) error {
	p := aligned(page)
	var mem []byte
	if g.w.open&unix.O_DIRECT == 0 {
		var err error
		if mem, err = unix.Mmap(g.fd, 0, int(g.size), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return err
		}
		defer func() { _ = unix.Munmap(mem) }()
	}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		far := g.far.Load()
		if far < 2*page {
			continue
		}
		at := (far - page - rand.Int64N(min(far-page, readSpan))) % (g.size - page) &^ (page - 1)
		began := time.Now()
		if mem != nil {
			copy(p, mem[at:])
		} else if _, err := unix.Pread(g.fd, p, at); err != nil {
			return err
		}
		r.reads = append(r.reads, time.Since(began))
		r.read++
	}
}
