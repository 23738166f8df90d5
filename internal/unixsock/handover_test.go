package unixsock

import (
	"errors"
	"io"
	"net"
	"testing"
)

// Who is handed an end talks to who accepts the other; nobody does after Close.
func TestHandover(t *testing.T) {
	h := NewHandover()
	accepted := make(chan string, 1)
	go func() {
		c, err := h.Accept()
		if err != nil {
			accepted <- err.Error()
			return
		}
		text, err := io.ReadAll(c)
		accepted <- string(text)
		_ = errors.Join(err, c.Close())
	}()
	f, err := h.Connect()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("hello"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := <-accepted; got != "hello" {
		t.Errorf("got %q", got)
	}
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Error(err)
	}
	if _, err := h.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := h.Connect(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
