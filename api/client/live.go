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
	"sync"

	"github.com/vektah/gqlparser/v2/gqlerror"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// liveContentType is that of the stream of a live restore (docs/format/live.md).
const liveContentType = "application/vnd.hyper-nixos.live"

// LiveOptions say what a volume shall be that is restored while it is used, and from what.
type LiveOptions struct {
	Name         string
	ContentBytes uint64
	Backup       string
	Repository   string
	Chunking     string // empty: cdc
	Mode         string // empty: writeback
}

// LiveVolume is a volume that is being restored.
type LiveVolume struct {
	Name         string `json:"name"`
	UUID         string `json:"uuid"`
	SizeBytes    uint64 `json:"sizeBytes"`
	ReachedBytes uint64 `json:"reachedBytes"` // what is before has come in an earlier attempt
	Resumed      bool   `json:"resumed"`
}

// LiveSender brings the content of a live restore.
type LiveSender interface {
	// Begin is told of the volume before anything else.
	Begin(LiveVolume) error
	// Want is told that a guest waits for a range. It must not wait.
	Want(block.Range)
	// Send writes the stream, in a goroutine of its own, beside the other two. It ends with ctx.
	Send(ctx context.Context, w io.Writer) error
}

// ErrLiveCut means that hvd ended, or the connection to it, before a live restore was complete.
var ErrLiveCut = errors.New("the connection to hvd ended before all of it had come")

// RestoreLive makes a volume that can be used at once, or goes on with one, and returns when sender has brought all of its content.
func (c *Client) RestoreLive(ctx context.Context, opts LiveOptions, sender LiveSender) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if opts.Name == "" || opts.Name == "." || opts.Name == ".." {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("volume name %q: want letters, digits, '.', '_' and '-', beginning with a letter or a digit", opts.Name)}
	}
	query := url.Values{"size": {strconv.FormatUint(opts.ContentBytes, 10)}, "backup": {opts.Backup}, "repository": {opts.Repository}}
	if opts.Chunking != "" {
		query.Set("chunking", opts.Chunking)
	}
	if opts.Mode != "" {
		query.Set("mode", opts.Mode)
	}
	body := &liveBody{ctx: ctx, sender: sender, begun: make(chan struct{}), cancel: cancel}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/v1/volumes/"+url.PathEscape(opts.Name)+"/live?"+query.Encode(), body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", liveContentType)
	defer body.end()
	response, err := c.do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return problem(response.StatusCode, response.Body)
	}
	err = follow(response.Body, sender, body)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause // what failed first
	}
	return err
}

// follow hears what hvd says until it is complete.
func follow(r io.Reader, sender LiveSender, body *liveBody) error {
	lines := bufio.NewScanner(r) // of at most 64 KiB
	for lines.Scan() {
		var line struct {
			Volume *LiveVolume   `json:"volume"`
			Offset uint64        `json:"offset"`
			Length uint64        `json:"length"`
			Done   bool          `json:"done"`
			Errors gqlerror.List `json:"errors"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("read the answer of hvd: %w", err)
		}
		switch {
		case len(line.Errors) > 0:
			return first(line.Errors)
		case line.Done:
			return nil
		case line.Volume != nil:
			if err := sender.Begin(*line.Volume); err != nil {
				return err
			}
			body.begin()
		case line.Length > 0:
			sender.Want(block.Range{Off: line.Offset, Len: line.Length})
		}
	}
	return ErrLiveCut // with or without an error of the connection, which says no more
}

// liveBody is the body of a live restore: nothing is sent before hvd has answered.
type liveBody struct {
	ctx     context.Context
	sender  LiveSender
	begun   chan struct{}
	once    sync.Once
	cancel  context.CancelCauseFunc
	sending sync.WaitGroup

	mu   sync.Mutex
	over bool // nothing is sent any more
}

func (b *liveBody) begin() { b.once.Do(func() { close(b.begun) }) }

// end returns when nothing is sent any more.
func (b *liveBody) end() {
	b.cancel(nil)
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	b.sending.Wait()
}

// enter reports whether something may be sent.
func (b *liveBody) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		b.sending.Add(1)
	}
	return !b.over
}

// Read implements io.Reader. net/http uses WriteTo.
func (b *liveBody) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Close implements io.Closer.
func (b *liveBody) Close() error { return nil }

// WriteTo implements io.WriterTo.
func (b *liveBody) WriteTo(w io.Writer) (int64, error) {
	if !b.enter() {
		return 0, context.Canceled
	}
	defer b.sending.Done()
	select {
	case <-b.begun:
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
	out := &faultWriter{w: w}
	err := b.sender.Send(b.ctx, out)
	if err != nil && out.err == nil {
		b.cancel(err) // its own fault, and not the connection's
	}
	return out.n, err
}
