package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	pieceSize = 1 << 20  // bytes read at once
	holeUnit  = 64 << 10 // zeroes are sent as holes in aligned units of this many bytes
	inFlight  = 4        // pieces read or written at once
)

// Source is where content is read from. An nbd.Device is one.
type Source interface {
	// ReadAt fills p with the bytes at off. What it appends to holes is not used.
	ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error)
}

// MaxRanges is how many ranges of content one request may name.
const MaxRanges = 1024

// Sparse is a Source that knows where nothing is stored.
type Sparse interface {
	// NextData returns the first offset from off on where data may be, or the end of the content.
	NextData(off uint64) (uint64, error)
}

// Send writes the whole content of a source, several reads being in flight. progress, which may be nil, is told how far the stream is.
// The caller reports an error of the source with Writer.Fail.
func Send(ctx context.Context, w *Writer, source Source, sizeBytes uint64, progress func(doneBytes uint64)) error {
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()

	buffers := make(chan []byte, inFlight)
	for range inFlight {
		buffers <- nil // allocated when it is first used
	}
	// Pieces leave in the order in which their reads began.
	order := make(chan chan piece, inFlight)
	readers.Go(func() {
		defer close(order)
		readAhead(ctx, source, sizeBytes, buffers, order, &readers)
	})
	for result := range order {
		p := <-result
		if p.err != nil {
			return p.err
		}
		if err := sendPiece(w, p.data, p.off); err != nil {
			return err
		}
		buffers <- p.data[:0]
		if progress != nil {
			progress(w.Offset())
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w.Hole(sizeBytes - w.Offset())
	return w.End()
}

type piece struct {
	off  uint64
	data []byte
	err  error
}

// readAhead starts the reads, as many at once as there are buffers.
func readAhead(ctx context.Context, source Source, size uint64, buffers chan []byte, order chan chan piece, readers *sync.WaitGroup) {
	sparse, _ := source.(Sparse)
	for off := uint64(0); off < size; {
		result := make(chan piece, 1)
		if sparse != nil {
			next, err := sparse.NextData(off)
			if err != nil {
				result <- piece{err: err}
				order <- result
				return
			}
			off = min(next, size) / holeUnit * holeUnit
			if next >= size {
				return
			}
		}
		var buffer []byte
		select {
		case buffer = <-buffers:
		case <-ctx.Done():
			return
		}
		if buffer == nil {
			buffer = make([]byte, min(pieceSize, size))
		}
		at := off
		buffer = buffer[:min(pieceSize, size-at)]
		readers.Go(func() {
			_, err := source.ReadAt(ctx, buffer, at, nil)
			result <- piece{at, buffer, err}
		})
		select {
		case order <- result:
		case <-ctx.Done():
			return
		}
		off += uint64(len(buffer))
	}
}

// sendPiece writes a piece; what lies between it and the one before is a hole, and so is every aligned unit of zeroes in it.
func sendPiece(w *Writer, p []byte, off uint64) error {
	w.Hole(off - w.Offset())
	start := 0 // of the data that is not sent yet
	for at := 0; at < len(p); {
		end := min(len(p), at+holeUnit-int((off+uint64(at))%holeUnit))
		if isZero(p[at:end]) {
			if at > start {
				if err := w.Data(p[start:at]); err != nil {
					return err
				}
			}
			w.Hole(uint64(end - at))
			start = end
		}
		at = end
	}
	if start == len(p) {
		return nil
	}
	return w.Data(p[start:])
}

// SendStream writes content that can only be read once, from front to back. A size that is not UnknownSize must be what the stream has.
func SendStream(ctx context.Context, w *Writer, r io.Reader, sizeBytes uint64, progress func(doneBytes uint64)) error {
	buffer := make([]byte, pieceSize)
	for ctx.Err() == nil {
		n, err := io.ReadFull(r, buffer)
		if w.Offset()+uint64(n) > sizeBytes {
			return fmt.Errorf("input is longer than the %d bytes announced: %w", sizeBytes, block.ErrInvalid)
		}
		if err := sendPiece(w, buffer[:n], w.Offset()); err != nil {
			return err
		}
		if progress != nil {
			progress(w.Offset())
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("read the input at %d: %w", w.Offset(), err)
		case sizeBytes != UnknownSize && w.Offset() < sizeBytes:
			return fmt.Errorf("input ended after %d of %d bytes: %w", w.Offset(), sizeBytes, ErrCut)
		case ctx.Err() != nil:
			return ctx.Err() // what interrupts this command ends the one that feeds it too
		default:
			return w.End()
		}
	}
	return ctx.Err()
}

var zeroes [block.Size]byte

func isZero(p []byte) bool {
	for len(p) > len(zeroes) {
		if !bytes.Equal(p[:len(zeroes)], zeroes[:]) {
			return false
		}
		p = p[len(zeroes):]
	}
	return bytes.Equal(p, zeroes[:len(p)])
}
