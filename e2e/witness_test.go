package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"
)

// witness is a client that writes and reads back all the time on a volume of its own, while another client or a command misbehaves. At its end every reply must have
// come, and come in time.
type witness struct {
	t    *testing.T
	d    *daemon
	end  context.CancelFunc
	done sync.WaitGroup
	err  error
	last []byte
	runs int
}

// unhindered is how long one round trip of a witness may take at most: hvd gives a client that holds what others wait for 10 s, and the machine may be slow.
const unhindered = 45 * time.Second

// watch starts a witness, which is ended by its testify.
func (d *daemon) watch() *witness {
	d.t.Helper()
	d.disk("witness", "4MiB")
	c := openNBD(d.t, d.nbdSocket(), "witness")
	ctx, end := context.WithCancel(context.Background())
	w := &witness{t: d.t, d: d, end: end}
	w.done.Go(func() {
		for w.err == nil && ctx.Err() == nil {
			w.err = w.once(c)
			time.Sleep(5 * time.Millisecond) // the machine is not there for the witness alone
		}
	})
	d.t.Cleanup(w.halt)
	return w
}

func (w *witness) halt() {
	w.end()
	w.done.Wait()
}

// once writes 64 KiB somewhere, flushes and reads it back.
func (w *witness) once(c *nbdClient) error {
	began := time.Now()
	w.runs++
	data := randomBytes(w.runs, 64<<10)
	back := make([]byte, len(data))
	off := uint64(w.runs%64) << 16
	if err := errors.Join(c.write(data, off), c.flush(), c.read(back, off)); err != nil {
		return err
	}
	if !bytes.Equal(data, back) {
		return fmt.Errorf("what was written at %d reads back otherwise", off)
	}
	if took := time.Since(began); took > unhindered {
		return fmt.Errorf("write, flush and read took %v", took)
	}
	w.last = data
	return nil
}

// testify ends the witness: it was served to the end, and what it wrote last is there, over a new connection too.
func (w *witness) testify() {
	w.t.Helper()
	w.halt()
	switch {
	case w.err != nil && !errors.Is(w.err, io.EOF):
		w.t.Errorf("another client was hindered: %v", w.err)
	case w.err != nil:
		w.t.Error("another client lost its connection")
	case w.runs == 0:
		w.t.Error("the witness saw nothing")
	}
	back := make([]byte, 64<<10)
	if err := openNBD(w.t, w.d.nbdSocket(), "witness").read(back, uint64(w.runs%64)<<16); err != nil || !bytes.Equal(back, w.last) {
		w.t.Errorf("what the witness wrote last is not there: %v", err)
	}
}
