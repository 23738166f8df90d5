package host

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// leastRate is how slow a client may be, bytes a second: else a few of them could hold all requests for ever.
const leastRate = 16 << 10

// errCut means that a body ended too early, or came too slowly.
var errCut = errors.New("cut off")

// until is when bytes that begin to move now must have done so.
func (c *call) until(bytes int64) time.Time {
	return time.Now().Add(c.h.o.Stall + time.Duration(bytes/leastRate)*time.Second)
}

// patience gives a client time to take an answer.
func (c *call) patience() { _ = c.connection.SetWriteDeadline(time.Now().Add(c.h.o.Stall)) }

// body reads so many bytes of a request, from a client that brings them in time.
type body struct {
	from       io.Reader
	connection *http.ResponseController
	stall      time.Duration
	until      time.Time
	left       int64
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if err := b.connection.SetReadDeadline(earlier(time.Now().Add(b.stall), b.until)); err != nil {
		return 0, err
	}
	n, err := b.from.Read(p)
	if b.left -= int64(n); b.left <= 0 {
		_ = b.connection.SetReadDeadline(time.Time{}) // to make it durable may take longer; a connection that has failed says so later
		return n, err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errCut, err)
	}
	return n, err
}

// writer writes an answer to a client that takes it in time.
type writer struct {
	to         io.Writer
	connection *http.ResponseController
	stall      time.Duration
	until      time.Time
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if err := w.connection.SetWriteDeadline(earlier(time.Now().Add(w.stall), w.until)); err != nil {
		return 0, err
	}
	return w.to.Write(p)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
