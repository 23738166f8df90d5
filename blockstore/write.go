package blockstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// errMapChanged says that a rollback came between the read and the write of a read-modify-write.
var errMapChanged = errors.New("the volume was rolled back meanwhile")

// writeScratch is what one batch needs; pooled, so that a write allocates nothing.
type writeScratch struct {
	recs   []journal.Record
	sums   []uint32
	pieces [][]byte
}

var writePool = sync.Pool{New: func() any { return new(writeScratch) }}

// aligned reports whether every write of the batch covers whole blocks.
func aligned(batch []block.Write) bool {
	for i := range batch {
		if (batch[i].Off|uint64(len(batch[i].Data)))&(block.Size-1) != 0 {
			return false
		}
	}
	return true
}

func batchBytes(batch []block.Write) (n int64) {
	for i := range batch {
		n += int64(len(batch[i].Data))
	}
	return n
}

// tryWrite applies a batch without waiting, or returns ErrWouldBlock having applied nothing: when a write covers part of a block, when the volume is durable, when the
// store asks writers to slow down.
func (v *Volume) tryWrite(batch []block.Write) error {
	if !aligned(batch) || WriteMode(v.mode.Load()) == ModeDurable {
		return block.ErrWouldBlock
	}
	if err := v.checkBatch(batch); err != nil {
		return err
	}
	bytes := batchBytes(batch)
	if v.streams(batch, bytes) {
		return block.ErrWouldBlock // a stream waits for the device, while the next requests can be received
	}
	if !v.mayPass(true, bytes) {
		return block.ErrWouldBlock
	}
	q, fits := v.takeQuota(bytes)
	if !fits {
		return block.ErrWouldBlock
	}
	defer q.landed(bytes)
	if err := v.s.space.tryAdmit(&v.share, bytes); err != nil {
		return err
	}
	defer v.s.space.landed(bytes)
	felt := &v.s.destager.feedback
	began := felt.begin()
	switch err := v.append(batch, nil, true); err {
	case nil:
		felt.end(began)
		v.passed(true, len(batch), bytes)
		return nil
	case errRMWConflict:
		return block.ErrWouldBlock
	default:
		return err
	}
}

// write applies a batch in order, waiting where it must. With sync, or on a durable volume, the effect is durable when it returns.
func (v *Volume) write(ctx context.Context, batch []block.Write, sync bool) error {
	if err := v.checkBatch(batch); err != nil {
		return err
	}
	if err := v.pass(ctx, true, len(batch), batchBytes(batch)); err != nil {
		return err
	}
	felt := &v.s.destager.feedback
	began := felt.begin()
	defer felt.end(began)
	if aligned(batch) {
		if err := v.appendWrites(ctx, batch, nil); err != nil {
			return err
		}
	} else {
		for _, w := range batch {
			if err := v.writeOne(ctx, w); err != nil {
				return err
			}
		}
	}
	if sync || WriteMode(v.mode.Load()) == ModeDurable {
		return v.flush(ctx)
	}
	return nil
}

func (v *Volume) writeOne(ctx context.Context, w block.Write) error {
	if len(w.Data) == 0 {
		return nil
	}
	if (w.Off|uint64(len(w.Data)))&(block.Size-1) == 0 {
		return v.appendWrites(ctx, []block.Write{w}, nil)
	}
	for {
		err := v.writeUnaligned(ctx, w)
		if !errors.Is(err, errMapChanged) {
			return err
		}
	}
}

func (v *Volume) checkBatch(batch []block.Write) error {
	for i := range batch {
		if err := v.checkRange(batch[i].Off, uint64(len(batch[i].Data))); err != nil {
			return fmt.Errorf("write volume %d at %d+%d B: %w", v.id, batch[i].Off, len(batch[i].Data), err)
		}
	}
	return nil
}

// appendWrites waits for space and for read-modify-writes that overlap, then appends. own is the caller's registered range, which does not count as a conflict.
func (v *Volume) appendWrites(ctx context.Context, batch []block.Write, own *rmwRange) error {
	bytes := batchBytes(batch)
	q, err := v.waitQuota(ctx, batch, bytes)
	if err != nil {
		return err
	}
	defer q.landed(bytes)
	for {
		err := v.appendAdmitted(ctx, batch, own)
		if err != block.ErrWouldBlock {
			return err
		}
		if err := v.s.space.waitForRoom(ctx); err != nil {
			return err
		}
	}
}

// appendAdmitted is appendWrites, but for a log that has no room after all: then it returns ErrWouldBlock, and holds nothing.
func (v *Volume) appendAdmitted(ctx context.Context, batch []block.Write, own *rmwRange) error {
	bytes := batchBytes(batch)
	if err := v.s.space.admit(ctx, &v.share, bytes); err != nil {
		return err
	}
	defer v.s.space.landed(bytes)
	for {
		err := v.append(batch, own, false)
		if err != errRMWConflict {
			return err
		}
		if err := v.waitRMW(ctx, batch); err != nil {
			return err
		}
	}
}

var errRMWConflict = errors.New("a read-modify-write overlaps")

// append logs a batch of whole-block writes and publishes it in the overlay of the head. This is the acknowledge path: one pwritev, no allocation, no wait but for the
// log's mutex. ErrWouldBlock means that the log is full or, with try, has no file ready, and that nothing was applied.
func (v *Volume) append(batch []block.Write, own *rmwRange, try bool) error {
	sc := writePool.Get().(*writeScratch)
	defer writePool.Put(sc)

	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.gone.Load() {
		return fmt.Errorf("write volume %d: %w", v.id, block.ErrClosed)
	}
	if own != nil && own.mapEpoch != v.mapEpoch {
		return errMapChanged
	}
	if own == nil && v.rmw.active.Load() != 0 {
		for i := range batch {
			first, count := blocksOf(batch[i].Off, uint64(len(batch[i].Data)))
			if v.rmw.conflict(first, count) != nil {
				return errRMWConflict
			}
		}
	}
	recs, bytes := sc.prepare(v, batch)
	if len(recs) == 0 {
		return nil
	}
	stream := !try && v.streams(batch, bytes) && v.s.mayStream()
	if stream {
		for i := range recs {
			recs[i].Flags = journal.FlagStream
		}
		v.s.streamed.Store(time.Now().UnixNano())
	}
	appendTo := v.s.log.Append
	if try {
		appendTo = v.s.log.TryAppend
	}
	if err := appendTo(recs); err != nil {
		if errors.Is(err, block.ErrWouldBlock) || errors.Is(err, block.ErrNoSpace) {
			return block.ErrWouldBlock // the log is full for now: destage makes room
		}
		return fmt.Errorf("write volume %d: %w", v.id, err)
	}
	v.s.at(afterAppend)
	v.s.noteAsked(recs[len(recs)-1].Seq)
	v.wrote(recs[len(recs)-1].Seq, bytes)
	v.stream.wrote(&v.s.opts, longestWrite(batch), bytes)
	if stream {
		last := &recs[len(recs)-1]
		v.s.streamedTo(last.Pos + journal.Pos(last.Len))
	}
	layer := v.head.Load().layer
	for i := range recs {
		r := &recs[i]
		layer.PublishWrite(r.Off/block.Size, uint64(r.Pos), r.Sums)
		r.Payload = nil
	}
	clear(sc.pieces)
	v.counters.writes.Add(int64(len(batch)))
	v.counters.writeBytes.Add(bytes)
	return nil
}

// prepare makes one log record of each write, or several where a write is longer than the log's files can take at once. The sums lie one after the other in the scratch,
// so that Append fills them without allocating.
func (sc *writeScratch) prepare(v *Volume, batch []block.Write) ([]journal.Record, int64) {
	total := int(batchBytes(batch) / block.Size)
	if cap(sc.sums) < total {
		sc.sums = make([]uint32, total)
	}
	sc.recs, sc.pieces = sc.recs[:0], sc.pieces[:0]
	most := int(v.s.opts.LogFileBytes/4) &^ (block.Size - 1)
	at := 0
	for i := range batch {
		off, rest := batch[i].Off, batch[i].Data
		for len(rest) > 0 {
			n := min(len(rest), most)
			sectors := n / block.Size
			sc.pieces = append(sc.pieces, rest[:n])
			sc.recs = append(sc.recs, journal.Record{
				Kind: journal.Write, Volume: v.id, MapEpoch: v.mapEpoch, Off: off, Len: uint64(n), Sums: sc.sums[at:at:(at + sectors)],
			})
			at += sectors
			off, rest = off+uint64(n), rest[n:]
		}
	}
	for i := range sc.recs {
		sc.recs[i].Payload = sc.pieces[i : i+1]
	}
	return sc.recs, int64(at) * block.Size
}

// waitRMW returns when no registered read-modify-write overlaps the batch.
func (v *Volume) waitRMW(ctx context.Context, batch []block.Write) error {
	for i := range batch {
		first, count := blocksOf(batch[i].Off, uint64(len(batch[i].Data)))
		if other := v.rmw.conflict(first, count); other != nil {
			select {
			case <-other.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}
