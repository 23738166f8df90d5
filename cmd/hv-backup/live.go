package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

const (
	livePiece       = 1 << 20   // bytes that are brought at once when nobody waits for them
	livePieces      = 4         // of these that are read at once
	livePieceSlow   = 256 << 10 // bytes, one such at once, where --limit-rate has what is waited for share the rate with it
	liveWantWorkers = 4         // ranges that are waited for and read at once
)

// liveRestore is how restoreLive makes a volume.
type liveRestore struct {
	volume   string
	chunking string
	quiet    bool   // shows no progress, as several come at once
	begun    func() // called when it can be attached; nil: that is said
}

// restoreLive makes a volume that can be attached at once, and brings its content: what guests wait for first. It reports whether it went on with one.
func (a *app) restoreLive(ctx context.Context, r *repository.Repository, m *repository.Manifest, how liveRestore) (resumed bool, err error) {
	api, err := a.hvd()
	if err != nil {
		return false, err
	}
	device, err := backup.NewDevice(r, m, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	meter := a.newMeter("restoring", m.SizeBytes)
	if how.quiet {
		meter = console.NewMeter(io.Discard, "", m.SizeBytes, false)
	}
	defer meter.End()
	s := &liveSender{a: a, m: m, begun: how.begun, device: device, meter: meter, piece: livePiece, pieces: livePieces, wanted: make(chan struct{}, 1)}
	if a.limit > 0 {
		s.piece, s.pieces = livePieceSlow, 1
	}
	s.mu.calm = sync.NewCond(&s.mu)
	err = api.RestoreLive(ctx, client.LiveOptions{Name: how.volume, ContentBytes: m.SizeBytes, Backup: m.Name, Repository: r.ID(), Chunking: how.chunking}, s)
	if errors.Is(err, client.ErrLiveCut) {
		err = fmt.Errorf("%w; what has come is kept, and the same command goes on when hvd is back", err)
	}
	return s.volume.Resumed, err
}

// liveSender brings the content of a backup to a volume that is in use already.
type liveSender struct {
	a      *app
	m      *repository.Manifest
	device *backup.Device
	meter  *console.Meter
	piece  uint64 // bytes
	pieces int
	wanted chan struct{} // has a token when a range was queued
	volume client.LiveVolume
	begun  func() // nil: that the volume can be attached is said

	out struct {
		sync.Mutex // held while a frame is sent
		w          *transfer.LiveWriter
	}
	mu struct {
		sync.Mutex
		calm  *sync.Cond // nobody waits any more
		queue []block.Range
		open  int                 // ranges that are waited for: in the queue, or being read
		sent  map[uint64]struct{} // offsets of ranges that were sent ahead of the rest
		over  bool
	}
}

// Begin implements client.LiveSender.
func (s *liveSender) Begin(v client.LiveVolume) error {
	s.volume = v
	if s.begun != nil {
		s.begun()
		return nil
	}
	how := "is there"
	if v.Resumed {
		how = fmt.Sprintf("goes on at %s of %s", units.Size(v.ReachedBytes).Human(), units.Size(s.m.SizeBytes).Human())
	}
	text := fmt.Sprintf("volume %s %s and can be attached now: hv-storage-fabric volume attach %s", v.Name, how, v.Name)
	if s.a.output == "json" {
		s.a.note("hv-backup: %s", text)
	} else {
		s.a.say("%s", text)
	}
	return nil
}

// Want implements client.LiveSender.
func (s *liveSender) Want(r block.Range) {
	s.mu.Lock()
	s.mu.queue = append(s.mu.queue, r)
	s.mu.open++
	s.mu.Unlock()
	s.wake()
}

func (s *liveSender) wake() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

// Send implements client.LiveSender.
func (s *liveSender) Send(ctx context.Context, w io.Writer) (err error) {
	if s.out.w, err = transfer.NewLiveWriter(w, s.m.SizeBytes); err != nil {
		return err
	}
	s.mu.sent = map[uint64]struct{}{}
	g, ctx := errgroup.WithContext(ctx)
	asked, end := context.WithCancel(ctx)
	for range liveWantWorkers {
		g.Go(func() error { return s.answerAll(asked) })
	}
	g.Go(func() error {
		defer end()
		return s.bring(ctx)
	})
	return g.Wait()
}

// giveUp wakes who waits for calm.
func (s *liveSender) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.over = true
	s.mu.calm.Broadcast()
}

// answerAll answers what is waited for until ctx ends.
func (s *liveSender) answerAll(ctx context.Context) error {
	for {
		select {
		case <-s.wanted:
		case <-ctx.Done():
			return nil
		}
		for {
			r, more, ok := s.take()
			if !ok {
				break
			}
			if more {
				s.wake() // another worker
			}
			if err := s.answer(ctx, r); err != nil && ctx.Err() == nil {
				return err
			}
			s.answered()
		}
	}
}

func (s *liveSender) take() (r block.Range, more, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.queue) == 0 {
		return r, false, false
	}
	r, s.mu.queue = s.mu.queue[0], s.mu.queue[1:]
	return r, len(s.mu.queue) > 0, true
}

func (s *liveSender) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.open--; s.mu.open == 0 {
		s.mu.calm.Broadcast()
	}
}

// answer sends a range that is waited for, or says that it cannot be had.
func (s *liveSender) answer(ctx context.Context, r block.Range) error {
	if r.Len == 0 || r.Len > transfer.MaxPayload || r.Off > s.m.SizeBytes || r.Len > s.m.SizeBytes-r.Off {
		return fmt.Errorf("hvd wants %d B at %d of %d B: %w", r.Len, r.Off, s.m.SizeBytes, block.ErrInvalid)
	}
	p := make([]byte, r.Len)
	holes, err := s.device.ReadAt(ctx, p, r.Off, nil)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.out.Lock()
	switch {
	case err != nil:
		s.a.note("hv-backup: a guest reads what cannot be restored: %v", err)
		err = s.out.w.Failed(r.Off, r.Len, err.Error())
	case len(holes) == 1 && holes[0].Len == r.Len:
		err = s.out.w.Zero(r.Off, r.Len)
	default:
		err = s.out.w.Data(r.Off, p)
		if r.Off%sentUnit == 0 && (r.Len == sentUnit || r.Off+r.Len == s.m.SizeBytes) {
			s.mu.Lock()
			s.mu.sent[r.Off] = struct{}{}
			s.mu.Unlock()
		}
	}
	s.out.Unlock()
	return err
}

// livePart is a part of the content on its way.
type livePart struct {
	off  uint64
	data []byte
	err  error
}

// bring sends everything from front to back, several parts being read at once, but begins none while anything is waited for.
func (s *liveSender) bring(ctx context.Context) error {
	var readers sync.WaitGroup
	defer readers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, s.giveUp)()
	defer s.giveUp()
	defer cancel()
	order := make(chan chan livePart, s.pieces-1)
	var failed error
	readers.Go(func() {
		defer close(order)
		failed = s.readAhead(ctx, order, &readers)
	})
	for next := range order {
		p := <-next
		if p.err != nil {
			return fmt.Errorf("read the backup at %d: %w", p.off, p.err)
		}
		if err := s.sendPart(p); err != nil {
			return err
		}
	}
	if failed != nil {
		return failed
	}
	return s.reached(s.m.SizeBytes)
}

// readAhead begins to read parts, in order, as many at once as order has room for and one more.
func (s *liveSender) readAhead(ctx context.Context, order chan<- chan livePart, readers *sync.WaitGroup) error {
	size := s.m.SizeBytes
	for off := s.volume.ReachedBytes; off < size; {
		data, err := s.device.NextData(ctx, off)
		if err != nil {
			return err
		}
		if data >= size {
			return nil
		}
		off = max(off, data/block.Size*block.Size)
		if s.waitForCalm(); ctx.Err() != nil {
			return ctx.Err()
		}
		p := livePart{off: off}
		end := min((off/s.piece+1)*s.piece, size)
		result := make(chan livePart, 1)
		select {
		case order <- result:
		case <-ctx.Done():
			return ctx.Err()
		}
		if s.wasSent(off, end) {
			result <- p
			off = end
			continue
		}
		p.data = make([]byte, end-off)
		readers.Go(func() {
			p.err = s.device.ReadOnce(ctx, p.data, p.off)
			result <- p
		})
		off = end
	}
	return nil
}

// waitForCalm returns when nobody waits for anything, or all is over.
func (s *liveSender) waitForCalm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.mu.open > 0 && !s.mu.over {
		s.mu.calm.Wait()
	}
}

// sentUnit is what hvd asks for at once, in bytes. Where it asks for other ranges, they are sent again.
const sentUnit = 256 << 10

// wasSent reports whether all of a part was sent already, as what somebody waited for.
func (s *liveSender) wasSent(off, end uint64) bool {
	const unit = sentUnit
	s.mu.Lock()
	defer s.mu.Unlock()
	all := true
	for at := off / unit * unit; at < end; at += unit {
		_, ok := s.mu.sent[at]
		all = all && ok
		delete(s.mu.sent, at) // it comes by here once
	}
	return all
}

// sendPart sends a part, which may have no data if that was sent already, and says that all before its end was.
func (s *liveSender) sendPart(p livePart) error {
	if len(p.data) == 0 {
		return nil // the next part, or the end, says it
	}
	s.out.Lock()
	err := s.out.w.Data(p.off, p.data)
	s.out.Unlock()
	if err != nil {
		return err
	}
	return s.reached(p.off + uint64(len(p.data)))
}

func (s *liveSender) reached(off uint64) error {
	s.meter.At(off)
	s.out.Lock()
	defer s.out.Unlock()
	return s.out.w.Reached(off)
}
