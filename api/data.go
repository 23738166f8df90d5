package api

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

const (
	// ContentType is that of streams of volume data (docs/format/transfer.md).
	ContentType = "application/vnd.hyper-nixos.stream"

	maxTransfers = 6               // imports and exports at once; each holds up to 16 MiB of buffers
	maxParts     = 4               // of snapshots, sent at once; each takes at most 4 MiB of buffers
	maxPart      = 16 << 20        // bytes
	drainTime    = 5 * time.Second // for a client to notice that its import has failed
)

// data serves the streams of volume data.
type data struct {
	control *control.Control

	slots, parts, restores places
}

func newData(c *control.Control) *data {
	return &data{control: c, slots: make(places, maxTransfers), parts: make(places, maxParts), restores: make(places, maxRestores)}
}

// enter checks what both directions check and takes a slot.
func (d *data) enter(r *http.Request) (leave func(), err error) {
	if err := allow(r.Context(), control.ScopeOperate); err != nil {
		return nil, err
	}
	return d.slots.take("other imports and exports are under way")
}

// put serves PUT /v1/volumes/{name}/data?chunking=…&mode=…&keepPartial=…: it makes a volume from the stream in the body.
func (d *data) put(w http.ResponseWriter, r *http.Request) {
	leave, err := d.enter(r)
	if err != nil {
		fail(w, err)
		return
	}
	defer leave()
	spec, err := importSpec(r)
	if err != nil {
		fail(w, err)
		return
	}
	// An error must reach a client that is still sending.
	w.Header().Set("Connection", "close") // a full-duplex request whose body was not read to its end must be the last one
	connection := http.NewResponseController(w)
	if err := connection.EnableFullDuplex(); err != nil {
		fail(w, err)
		return
	}
	body := &countingReader{r: r.Body}
	volume, err := d.control.Import(r.Context(), spec, body)
	if err == nil {
		reply(w, http.StatusCreated, map[string]any{"name": volume.Name, "uuid": volume.UUID, "sizeBytes": volume.SizeBytes})
		return
	}
	fail(w, err)
	if body.bytes == 0 {
		return // the client still waits for the word to begin
	}
	_ = connection.Flush()
	_ = connection.SetReadDeadline(time.Now().Add(drainTime))
	_, _ = io.Copy(io.Discard, r.Body)
}

// countingReader knows how much came.
type countingReader struct {
	r     io.Reader
	bytes int64
}

// Read implements io.Reader.
func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.bytes += int64(n)
	return n, err
}

func importSpec(r *http.Request) (control.ImportSpec, error) {
	if got := r.Header.Get("Content-Type"); got != ContentType {
		return control.ImportSpec{}, fmt.Errorf("content type %q: want %s: %w", got, ContentType, block.ErrInvalid)
	}
	query := r.URL.Query()
	spec := control.ImportSpec{Name: r.PathValue("name"), Chunking: query.Get("chunking"), Mode: query.Get("mode")}
	if keep := query.Get("keepPartial"); keep != "" {
		var err error
		if spec.KeepPartial, err = strconv.ParseBool(keep); err != nil {
			return spec, fmt.Errorf("keepPartial=%q: want true or false: %w", keep, block.ErrInvalid)
		}
	}
	return spec, nil
}

// get serves GET /v1/volumes/{name}/data?snapshot=…&offset=…&length=…, or …&ranges=OFFSET:LENGTH,…: the content of a snapshot, or parts of it one after the other, or the content of the volume at this moment.
func (d *data) get(w http.ResponseWriter, r *http.Request) {
	parts, err := partsOf(r.URL.Query())
	if err != nil {
		fail(w, err)
		return
	}
	enter := d.enter
	if len(parts) > 0 {
		enter = d.enterPart
	}
	leave, err := enter(r)
	if err != nil {
		fail(w, err)
		return
	}
	defer leave()
	body := &lateBody{w: w, contentType: ContentType}
	err = d.control.Export(r.Context(), r.PathValue("name"), r.URL.Query().Get("snapshot"), parts, body)
	body.finish(err)
}

// partsOf reads which parts of a snapshot a request asks for; none: all.
func partsOf(query url.Values) ([]block.Range, error) {
	if query.Has("ranges") {
		if query.Has("offset") || query.Has("length") {
			return nil, fmt.Errorf("ranges, and an offset or length: want one of both: %w", block.ErrInvalid)
		}
		return rangesOf(query.Get("ranges"))
	}
	if !query.Has("offset") && !query.Has("length") {
		return nil, nil
	}
	part, err := rangeOf(query.Get("offset"), query.Get("length"))
	return []block.Range{part}, err
}

// rangesOf reads ranges that have maxPart bytes at most together.
func rangesOf(text string) ([]block.Range, error) {
	fields := strings.SplitN(text, ",", transfer.MaxRanges+1)
	if len(fields) > transfer.MaxRanges {
		return nil, fmt.Errorf("more than %d ranges: %w", transfer.MaxRanges, block.ErrInvalid)
	}
	parts, left := make([]block.Range, len(fields)), uint64(maxPart)
	for i, field := range fields {
		off, length, _ := strings.Cut(field, ":")
		part, err := rangeOf(off, length)
		if err != nil {
			return nil, err
		}
		if part.Len > left {
			return nil, fmt.Errorf("ranges of more than %d B together: %w", maxPart, block.ErrInvalid)
		}
		parts[i], left = part, left-part.Len
	}
	return parts, nil
}

func rangeOf(off, length string) (r block.Range, err error) {
	var lengthErr error
	r.Off, err = strconv.ParseUint(off, 10, 64)
	if r.Len, lengthErr = strconv.ParseUint(length, 10, 64); err != nil || lengthErr != nil || r.Len == 0 || r.Len > maxPart {
		return r, fmt.Errorf("offset=%q and length=%q: want numbers of bytes, the length from 1 to %d: %w", off, length, maxPart, block.ErrInvalid)
	}
	return r, nil
}

// enterPart takes a slot for a part, of which one client asks for many: it waits for one.
func (d *data) enterPart(r *http.Request) (leave func(), err error) {
	if err := allow(r.Context(), control.ScopeOperate); err != nil {
		return nil, err
	}
	select {
	case d.parts <- struct{}{}:
		return func() { <-d.parts }, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// support serves GET /v1/support: a gzipped tar of what helps to understand a fault, without guest data and secrets.
func (d *data) support(w http.ResponseWriter, r *http.Request) {
	if err := allow(r.Context(), control.ScopeAdmin); err != nil {
		fail(w, err)
		return
	}
	body := &lateBody{w: w, contentType: "application/gzip"}
	body.finish(d.control.Support(body))
}

// lateBody sends the header of a reply with the first byte, so that what fails before is a proper error.
type lateBody struct {
	w           http.ResponseWriter
	contentType string
	begun       bool
}

// Write implements io.Writer.
func (b *lateBody) Write(p []byte) (int, error) {
	first := !b.begun
	if first {
		b.begun = true
		b.w.Header().Set("Content-Type", b.contentType)
		b.w.Header().Set("Cache-Control", "no-store")
	}
	n, err := b.w.Write(p)
	if first && err == nil {
		err = http.NewResponseController(b.w).Flush() // what follows may take a while: the client should know that it is well
	}
	return n, err
}

// finish answers with an error, or cuts the connection if it is too late for that: a body must never look complete when it is not.
func (b *lateBody) finish(err error) {
	if err == nil {
		return
	}
	if !b.begun {
		fail(b.w, err)
		return
	}
	_ = http.NewResponseController(b.w).Flush() // the stream's own word about the failure should arrive
	panic(http.ErrAbortHandler)                 // net/http's way to close a connection without the end of the body
}
