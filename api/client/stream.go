package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// contentType is that of streams of volume data (docs/format/transfer.md).
const contentType = "application/vnd.hyper-nixos.stream"

// ImportOptions say what an imported volume shall be.
type ImportOptions struct {
	Name        string
	Chunking    string // empty: cdc
	Mode        string // empty: writeback
	KeepPartial bool
}

// Imported is a volume that an import made.
type Imported struct {
	Name      string `json:"name"`
	UUID      string `json:"uuid"`
	SizeBytes uint64 `json:"sizeBytes"`
}

// interruptTime is what hvd gets, after ctx has ended, to undo an import and say so.
const interruptTime = 3 * time.Second

// Import makes a volume of what send writes to the stream's underlying writer. When send fails it has ended the stream with the reason
// (transfer.Writer.Fail), so that hvd undoes the import before this returns. When ctx ends, send should end too.
func (c *Client) Import(ctx context.Context, opts ImportOptions, send func(ctx context.Context, w io.Writer) error) (Imported, error) {
	query := url.Values{"keepPartial": {strconv.FormatBool(opts.KeepPartial)}}
	if opts.Chunking != "" {
		query.Set("chunking", opts.Chunking)
	}
	if opts.Mode != "" {
		query.Set("mode", opts.Mode)
	}
	requestCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(interruptTime, cancel) })()
	body := &sendBody{ctx: ctx, send: send, result: make(chan error, 1)}
	path, err := dataPath(opts.Name, query)
	if err != nil {
		return Imported{}, err
	}
	request, err := http.NewRequestWithContext(requestCtx, http.MethodPut, c.base+path, io.NopCloser(body))
	if err != nil {
		return Imported{}, err
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Expect", "100-continue")
	response, err := c.do(request)
	if err != nil {
		return Imported{}, body.cause(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		return Imported{}, problem(response.StatusCode, response.Body)
	}
	var volume Imported
	if err := json.NewDecoder(response.Body).Decode(&volume); err != nil {
		return Imported{}, fmt.Errorf("read the answer of hvd: %w", err)
	}
	return volume, nil
}

// Alarm says that something with a bound has become more or less full, or that something is as it should not be, or no longer (control.Alarm).
type Alarm struct {
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"` // "space", "quota", "unique-quota", "overcommit", "disk" or "damage"; empty: a sign of life
	Volume     string    `json:"volume,omitempty"`
	State      string    `json:"state"`
	UsedBytes  uint64    `json:"usedBytes,omitempty"`
	LimitBytes uint64    `json:"limitBytes,omitempty"`
	FreeBytes  uint64    `json:"freeBytes,omitempty"`
	Detail     string    `json:"detail,omitempty"`
	Text       string    `json:"text"`           // for people
	Next       string    `json:"next,omitempty"` // what to do about it
}

// Alarms calls tell with each thing that is nearly full or full or as it should not be and, with follow, with each change from then on, until tell fails, ctx ends or hvd does. Signs of life are not told.
func (c *Client) Alarms(ctx context.Context, follow bool, tell func(Alarm) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v1/alarms?follow="+strconv.FormatBool(follow), nil)
	if err != nil {
		return err
	}
	response, err := c.do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return problem(response.StatusCode, response.Body)
	}
	lines := bufio.NewScanner(response.Body) // of at most 64 KiB
	for lines.Scan() {
		var alarm Alarm
		if err := json.Unmarshal(lines.Bytes(), &alarm); err != nil {
			return fmt.Errorf("read the answer of hvd: %w", err)
		}
		if alarm.Kind == "" {
			continue
		}
		if err := tell(alarm); err != nil {
			return err
		}
	}
	return lines.Err()
}

// sendBody is a request's body that is pushed into the connection rather than pulled from a reader, so that no copy lies between.
type sendBody struct {
	ctx    context.Context
	send   func(ctx context.Context, w io.Writer) error
	result chan error
}

// Read implements io.Reader. net/http uses WriteTo.
func (b *sendBody) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// WriteTo implements io.WriterTo.
func (b *sendBody) WriteTo(w io.Writer) (int64, error) {
	out := &faultWriter{w: w}
	err := b.send(b.ctx, out)
	if err != nil && out.err == nil {
		b.result <- err // the sender's own fault: the stream says so, and the request ends as it should
		err = nil
	}
	return out.n, err
}

// cause prefers the sender's own error to what it led to.
func (b *sendBody) cause(err error) error {
	select {
	case own := <-b.result:
		return own
	default:
		return err
	}
}

// faultWriter counts, and remembers whether it was the writer that failed.
type faultWriter struct {
	w   io.Writer
	n   int64
	err error
}

func (f *faultWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.n += int64(n)
	if err != nil {
		f.err = err
	}
	return n, err
}

// Export opens the stream of a snapshot's content, or of the volume's at this moment when snapshot is empty. The caller closes it.
func (c *Client) Export(ctx context.Context, volume, snapshot string) (*transfer.Reader, io.Closer, error) {
	query := url.Values{}
	if snapshot != "" {
		query.Set("snapshot", snapshot)
	}
	path, err := dataPath(volume, query)
	if err != nil {
		return nil, nil, err
	}
	body, err := c.get(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	stream, err := transfer.NewReader(bufio.NewReaderSize(body, 64<<10))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("read the stream of volume %q: %w", volume, err), body.Close())
	}
	return stream, body, nil
}

// ReadRange fills p with the bytes of a snapshot at off. Calls may run at once. It asks for 16 MiB at most at a time.
func (c *Client) ReadRange(ctx context.Context, volume, snapshot string, p []byte, off uint64) error {
	const most = 16 << 20
	for len(p) > 0 {
		n := min(len(p), most)
		if err := c.readPart(ctx, volume, snapshot, p[:n], url.Values{"offset": {strconv.FormatUint(off, 10)}, "length": {strconv.Itoa(n)}}); err != nil {
			return err
		}
		p, off = p[n:], off+uint64(n)
	}
	return nil
}

// readPart fills p with the part of a snapshot that a query names.
func (c *Client) readPart(ctx context.Context, volume, snapshot string, p []byte, query url.Values) (err error) {
	query.Set("snapshot", snapshot)
	path, err := dataPath(volume, query)
	if err != nil {
		return err
	}
	body, err := c.get(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if err := fillFrom(body, p); err != nil {
		return fmt.Errorf("read %s@%s: %w", volume, snapshot, err)
	}
	return nil
}

// ReadRanges fills p with the bytes of ranges of a snapshot, one after the other, in few requests. Calls may run at once.
func (c *Client) ReadRanges(ctx context.Context, volume, snapshot string, p []byte, ranges []block.Range) error {
	const most = 1 << 20 // in one request, but for a range that is longer
	for len(ranges) > 0 {
		if ranges[0].Len > most {
			if err := c.ReadRange(ctx, volume, snapshot, p[:ranges[0].Len], ranges[0].Off); err != nil {
				return err
			}
			p, ranges = p[ranges[0].Len:], ranges[1:]
			continue
		}
		var text []byte
		length, n := uint64(0), 0
		for ; n < len(ranges) && n < transfer.MaxRanges && length+ranges[n].Len <= most; n++ {
			if n > 0 {
				text = append(text, ',')
			}
			text = append(strconv.AppendUint(text, ranges[n].Off, 10), ':')
			text = strconv.AppendUint(text, ranges[n].Len, 10)
			length += ranges[n].Len
		}
		err := c.readPart(ctx, volume, snapshot, p[:length], url.Values{"ranges": {string(text)}})
		if errors.Is(err, errOtherSize) { // an older hvd, which knows no ranges and sends all
			err = c.readEach(ctx, volume, snapshot, p[:length], ranges[:n])
		}
		if err != nil {
			return err
		}
		p, ranges = p[length:], ranges[n:]
	}
	return nil
}

// readEach is ReadRanges with a request for each.
func (c *Client) readEach(ctx context.Context, volume, snapshot string, p []byte, ranges []block.Range) error {
	for _, r := range ranges {
		if err := c.ReadRange(ctx, volume, snapshot, p[:r.Len], r.Off); err != nil {
			return err
		}
		p = p[r.Len:]
	}
	return nil
}

// errOtherSize says that a stream is not as long as what was asked for.
var errOtherSize = fmt.Errorf("another size than was asked for: %w", block.ErrInvalid)

// fillFrom fills p with what a stream of just that length has, and reads the stream to its end, so that the connection can be used again.
func fillFrom(r io.Reader, p []byte) error {
	stream, err := transfer.NewReader(r)
	if err != nil {
		return err
	}
	if stream.Size() != uint64(len(p)) {
		return fmt.Errorf("the stream has %d B instead of %d: %w", stream.Size(), len(p), errOtherSize)
	}
	done := 0
	for {
		piece, err := stream.Next(func(n int) []byte { return p[done:min(done+n, len(p))] })
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		if piece.Length > uint64(len(p)-done) {
			return fmt.Errorf("the stream goes on behind its end: %w", block.ErrCorrupt)
		}
		next := done + int(piece.Length)
		if piece.Data == nil {
			clear(p[done:next])
		}
		done = next
	}
}

// dataPath is where a volume's data streams to and from. hvd judges the name, but for those that a path cannot carry.
func dataPath(volume string, query url.Values) (string, error) {
	if volume == "" || volume == "." || volume == ".." {
		return "", &Error{Code: CodeInvalid, Message: fmt.Sprintf("volume name %q: want letters, digits, '.', '_' and '-', beginning with a letter or a digit", volume)}
	}
	return "/v1/volumes/" + url.PathEscape(volume) + "/data?" + query.Encode(), nil
}

// Support opens the support bundle, a gzipped tar. The caller closes it.
func (c *Client) Support(ctx context.Context) (io.ReadCloser, error) {
	return c.get(ctx, "/v1/support")
}

func (c *Client) get(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := c.do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		return nil, problem(response.StatusCode, response.Body)
	}
	return response.Body, nil
}
