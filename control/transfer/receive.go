package transfer

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Target takes the content of a stream. It reads as zeroes before.
type Target struct {
	// Reserve makes room for at least needBytes of content and returns how much there is room for then. It is called before a write
	// that needs it, never while one runs. It may be nil: there is room.
	Reserve func(ctx context.Context, needBytes uint64) (haveBytes uint64, err error)
	// Write stores runs of bytes. Up to four calls run at once, of which each has its own part of the content.
	Write func(ctx context.Context, batch []block.Write) error
}

// Receive reads a stream to its end into target, several writes being in flight, and returns the size of the content. Blocks of zeroes
// are not written. On an error the size is how far the stream was whole and everything before it was written, if the target did not fail.
func Receive(ctx context.Context, s *Reader, target Target, progress func(doneBytes uint64)) (sizeBytes uint64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var writers sync.WaitGroup
	defer cancel(nil)
	defer writers.Wait()
	defer func() {
		writers.Wait()
		if cause := context.Cause(ctx); cause != nil {
			err = cause // what failed first
		}
	}()

	buffers := make(chan []byte, inFlight)
	for range inFlight {
		buffers <- nil // allocated when it is first used
	}
	reserved := uint64(0)
	for ctx.Err() == nil {
		var buffer []byte
		piece, err := s.Next(func(n int) []byte {
			buffer = <-buffers
			if cap(buffer) < n {
				buffer = make([]byte, n)
			}
			return buffer[:n]
		})
		if errors.Is(err, io.EOF) {
			return piece.Off, reserve(ctx, target, &writers, &reserved, piece.Off)
		}
		if err != nil {
			return sizeBytes, err
		}
		sizeBytes = piece.Off + piece.Length
		if piece.Data != nil {
			if err := reserve(ctx, target, &writers, &reserved, sizeBytes); err != nil {
				return piece.Off, err
			}
			writers.Go(func() {
				if err := writePiece(ctx, target, piece); err != nil {
					cancel(err)
				}
				buffers <- buffer
			})
		}
		if progress != nil {
			progress(sizeBytes)
		}
	}
	return sizeBytes, context.Cause(ctx)
}

// reserve makes room up to end, if there is not enough.
func reserve(ctx context.Context, target Target, writers *sync.WaitGroup, reserved *uint64, end uint64) error {
	if target.Reserve == nil || end <= *reserved {
		return nil
	}
	writers.Wait()
	have, err := target.Reserve(ctx, end)
	*reserved = have
	return err
}

func writePiece(ctx context.Context, target Target, p Piece) error {
	if batch := nonZero(p.Data, p.Off); len(batch) > 0 {
		return target.Write(ctx, batch)
	}
	return nil
}

// nonZero cuts data into runs without the aligned blocks that are all zeroes.
func nonZero(data []byte, off uint64) []block.Write {
	var runs []block.Write
	open := false // the last run ends where this block begins
	for at := 0; at < len(data); {
		end := min(len(data), at+block.Size-int((off+uint64(at))%block.Size))
		switch {
		case isZero(data[at:end]):
			open = false
		case open:
			last := &runs[len(runs)-1]
			last.Data = last.Data[:len(last.Data)+end-at]
		default:
			runs = append(runs, block.Write{Off: off + uint64(at), Data: data[at:end]})
			open = true
		}
		at = end
	}
	return runs
}
