package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control"
)

const (
	// LiveContentType is that of the stream of a live restore (docs/format/live.md).
	LiveContentType = "application/vnd.hyper-nixos.live"

	maxRestores = 8                // live restores at once; each holds at most 8 MiB of buffers
	liveStall   = 30 * time.Second // that the other side may take to hear what is waited for
	liveBeat    = 15 * time.Second // between signs of life
)

// liveLine is one line of the answer: the first has the volume, the last done or an error, and each between is a range that is waited for, or an empty object as a sign of life.
type liveLine struct {
	Volume    *liveVolume `json:"volume,omitempty"`
	*liveWant             // offset and length
	Done      bool        `json:"done,omitempty"`
	Errors    []fault     `json:"errors,omitempty"`
}

type liveVolume struct {
	Name         string `json:"name"`
	UUID         string `json:"uuid"`
	SizeBytes    uint64 `json:"sizeBytes"`
	ReachedBytes uint64 `json:"reachedBytes"`
	Resumed      bool   `json:"resumed"`
}

type liveWant struct {
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
}

// live serves POST /v1/volumes/{name}/live?size=…&backup=…&repository=…&chunking=…&mode=…: a volume that can be used at once takes its content from the body, while the answer tells what guests wait for.
func (d *data) live(w http.ResponseWriter, r *http.Request) {
	if err := allow(r.Context(), control.ScopeOperate); err != nil {
		fail(w, err)
		return
	}
	leave, err := d.restores.take("other live restores are under way")
	if err != nil {
		fail(w, err)
		return
	}
	defer leave()
	spec, err := restoreSpec(r)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Connection", "close") // a full-duplex request whose body was not read to its end must be the last one
	c := &liveConn{w: w, connection: http.NewResponseController(w)}
	if err := c.connection.EnableFullDuplex(); err != nil {
		fail(w, err)
		return
	}
	err = d.control.RestoreLive(r.Context(), spec, control.RestoreConn{Body: r.Body, Begin: c.begin, Want: c.want, Cut: c.cut})
	if c.stopBeat != nil {
		c.stopBeat()
	}
	switch {
	case c.stopBeat == nil && err != nil:
		fail(w, err)
	case err != nil:
		code, _ := codeOf(err)
		_ = c.send(liveLine{Errors: []fault{{err.Error(), map[string]string{"code": code}}}}) // whoever has gone does not hear it
		_ = c.connection.SetReadDeadline(time.Now().Add(drainTime))
		_, _ = io.Copy(io.Discard, r.Body)
	default:
		_ = c.send(liveLine{Done: true})
	}
}

func restoreSpec(r *http.Request) (control.RestoreSpec, error) {
	if got := r.Header.Get("Content-Type"); got != LiveContentType {
		return control.RestoreSpec{}, fmt.Errorf("content type %q: want %s: %w", got, LiveContentType, block.ErrInvalid)
	}
	query := r.URL.Query()
	size, err := strconv.ParseUint(query.Get("size"), 10, 64)
	if err != nil {
		return control.RestoreSpec{}, fmt.Errorf("size=%q: want a number of bytes: %w", query.Get("size"), block.ErrInvalid)
	}
	return control.RestoreSpec{
		Name: r.PathValue("name"), ContentBytes: size, Backup: query.Get("backup"), Repository: query.Get("repository"), Chunking: query.Get("chunking"), Mode: query.Get("mode"),
	}, nil
}

// liveConn is the connection of a live restore.
type liveConn struct {
	w          http.ResponseWriter
	connection *http.ResponseController
	stopBeat   func() // nil: nothing was sent

	mu sync.Mutex // held while a line is sent
}

func (c *liveConn) begin(b control.RestoreBegun) error {
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.Header().Set("Cache-Control", "no-store")
	v := b.Volume
	c.stopBeat = c.beat()
	return c.send(liveLine{Volume: &liveVolume{Name: v.Name, UUID: v.UUID, SizeBytes: v.SizeBytes, ReachedBytes: b.ReachedBytes, Resumed: b.Resumed}})
}

func (c *liveConn) want(x block.Range) error {
	err := c.send(liveLine{liveWant: &liveWant{x.Off, x.Len}})
	if err != nil {
		c.cut()
	}
	return err
}

// cut makes the body fail.
func (c *liveConn) cut() { _ = c.connection.SetReadDeadline(time.Unix(1, 0)) }

func (c *liveConn) send(line liveLine) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connection.SetWriteDeadline(time.Now().Add(liveStall)); err != nil {
		return err
	}
	if err := json.NewEncoder(c.w).Encode(line); err != nil {
		return err
	}
	return c.connection.Flush()
}

// beat sends signs of life, so that both ends notice when the other one is gone, until it is stopped.
func (c *liveConn) beat() (stop func()) {
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(liveBeat)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if c.send(liveLine{}) != nil {
					c.cut()
					return
				}
			case <-ended:
				return
			}
		}
	})
	return func() { close(ended); running.Wait() }
}
