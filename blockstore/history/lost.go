package history

import (
	"context"
	"errors"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// LostRange is a part of a file that cannot be read, and what it held.
type LostRange struct {
	Off, Len int64  // in the file, bytes
	From, To int64  // times of the writes whose payload lies there, ns since the epoch; of an index of all records
	FromSeq  uint64 // their sequence numbers
	ToSeq    uint64
}

// Lost says what cannot be read of a damaged file, in the order of the file, at most most ranges and how many more there are. It reads what there is of the file. None says that readers have all that they need. An error is the end of ctx, block.ErrNotFound of a file that is gone, or what keeps this process from reading it now.
func (s *Set) Lost(ctx context.Context, k FileKey, most int, pace erasure.Pace) (lost []LostRange, more int, err error) {
	f, err := s.sealedFile(k)
	if err != nil {
		return nil, 0, err
	}
	x, err := f.index()
	if err != nil && !mendable(err) {
		return nil, 0, gone(err)
	}
	if err != nil {
		return []LostRange{{Len: f.bytesID().size, From: f.header.Created, To: f.lastTime, FromSeq: f.header.After + 1, ToSeq: f.lastSeq}}, 0, nil
	}
	var bad []frameRef
	for i := range x.frames {
		r := &x.frames[i]
		if err := pace.Wait(ctx, int(r.stored)); err != nil {
			return nil, 0, err
		}
		if _, err := f.payload(r); mendable(err) {
			bad = append(bad, *r)
		} else if err != nil {
			return nil, 0, gone(err)
		}
	}
	spans := make([]LostRange, len(bad))
	for i := range bad {
		spans[i].Off, spans[i].Len = bad[i].payloadAt(), int64(bad[i].stored)
	}
	err = f.each(func(r *Record) error {
		for at := uint64(0); r.Kind == Write && at < r.Len; at += sectorSize {
			if in, _, ok := x.find(rawOf(r.Pos + at)); ok {
				if i, found := frameAt(bad, in.raw); found {
					spans[i].take(r)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, gone(err)
	}
	for i, l := range spans {
		if n := len(lost); n > 0 && more == 0 && bad[i].off == bad[i-1].payloadAt()+int64(bad[i-1].stored) {
			lost[n-1].join(&l)
		} else if n < most {
			lost = append(lost, l)
		} else {
			more++
		}
	}
	return lost, more, nil
}

// gone is an error of a read of a file that may have been dropped meanwhile.
func gone(err error) error {
	if errors.Is(err, block.ErrClosed) {
		return errGone
	}
	return err
}

// frameAt finds the frame that has a byte of the raw payload.
func frameAt(frames []frameRef, raw uint32) (int, bool) {
	return slices.BinarySearchFunc(frames, raw, func(r frameRef, raw uint32) int {
		switch {
		case r.raw+r.rawLen <= raw:
			return -1
		case r.raw > raw:
			return 1
		}
		return 0
	})
}

// take counts a record whose payload is lost.
func (l *LostRange) take(r *Record) {
	if l.FromSeq == 0 {
		l.From, l.FromSeq = r.Time, r.Seq
	}
	l.From, l.FromSeq = min(l.From, r.Time), min(l.FromSeq, r.Seq)
	l.To, l.ToSeq = max(l.To, r.Time), max(l.ToSeq, r.Seq)
}

// join lets a range go on to the end of the next one.
func (l *LostRange) join(next *LostRange) {
	l.Len = next.Off + next.Len - l.Off
	if next.FromSeq > 0 {
		l.take(&Record{Time: next.From, Seq: next.FromSeq})
		l.take(&Record{Time: next.To, Seq: next.ToSeq})
	}
}
