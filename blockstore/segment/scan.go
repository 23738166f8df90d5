package segment

import (
	"errors"
	"fmt"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// scanWindow is how many bytes ScanFrames reads at once.
const scanWindow = 1 << 20

// ScanFrames reads the frames that lie from offset from up to to, checks each and calls visit with it, in order. The frame is valid until visit
// returns. It needs neither directory nor footer, so it also reads what a crash left.
//
// It returns the offset behind the last good frame. The error is nil when that is to; a *block.CorruptError that names the segment offset of the first bad
// frame, which may be just the end of what was written; or the first error of r or visit. It holds at most about 5 MiB.
func ScanFrames(r io.ReaderAt, from, to uint32, visit func(off uint32, f *Frame) error) (end uint32, err error) {
	s := scanner{r: r, at: from, to: to}
	for s.at < s.to {
		f, err := s.frame()
		if err != nil {
			return s.at, fmt.Errorf("scan frames at %d: %w", s.at, err)
		}
		if err := visit(s.at, &f); err != nil {
			return s.at, err
		}
		s.at += f.Size
	}
	return s.at, nil
}

// scanner holds a window of the segment: buf lies at off.
type scanner struct {
	r      io.ReaderAt
	at, to uint32 // next frame, and end
	off    uint32
	buf    []byte
}

func (s *scanner) frame() (Frame, error) {
	b, err := s.window(frameHeaderSize)
	if err != nil {
		return Frame{}, err
	}
	size, err := FrameSize(b)
	if err != nil {
		return Frame{}, err
	}
	if b, err = s.window(size); err != nil {
		return Frame{}, err
	}
	return ParseFrame(b[:size])
}

// window returns at least n bytes at s.at.
func (s *scanner) window(n uint32) ([]byte, error) {
	if n > s.to-s.at {
		return nil, &block.CorruptError{Source: "segment", Offset: int64(s.at), Want: fmt.Sprintf("a frame of %d B", n), Got: fmt.Sprintf("%d B", s.to-s.at)}
	}
	if have := s.off + uint32(len(s.buf)); s.at >= s.off && s.at+n <= have {
		return s.buf[s.at-s.off:], nil
	}
	want := min(max(n, scanWindow), s.to-s.at)
	if uint32(cap(s.buf)) < want {
		s.buf = make([]byte, want)
	}
	got, err := s.r.ReadAt(s.buf[:want], int64(s.at))
	s.buf, s.off = s.buf[:got], s.at
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if uint32(got) < n { // the file is shorter than it should be; what there is of the window may still hold frames
		return nil, &block.CorruptError{Source: "segment", Offset: int64(s.at), Want: fmt.Sprintf("%d B", n), Got: fmt.Sprintf("%d B", got)}
	}
	return s.buf, nil
}
