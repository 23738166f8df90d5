package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

// How long the other side may take.
const (
	connectTime = 10 * time.Second
	stallTime   = 2 * time.Minute // to take a piece of what is sent
	answerTime  = 5 * time.Minute // to make a point durable
	helloTime   = time.Minute
)

// Client talks to the hvd of one target. Not for use by several goroutines at once.
type Client struct {
	target Target
	http   *http.Client
	base   string
}

// NewClient returns a client of a target. Nothing is connected yet; the files are read. files are needed for hvd:// only.
func NewClient(t Target, files mutualtls.Files) (*Client, error) {
	c := &Client{target: t, base: "http://hvd"}
	transport := &http.Transport{
		WriteBufferSize: 256 << 10, ReadBufferSize: 16 << 10, MaxIdleConns: 1, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: connectTime, ResponseHeaderTimeout: answerTime, MaxResponseHeaderBytes: 64 << 10,
	}
	network, address := "unix", t.Socket
	if t.Socket == "" {
		network, address, c.base = "tcp", t.Address, "https://"+t.Address
		if !files.Set() {
			return nil, fmt.Errorf("hvd:// is always under TLS, with certificates on both sides: set replication.cert, replication.key and replication.ca: %w", block.ErrInvalid)
		}
		config, err := files.ClientConfig(t.Host)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = config
	}
	dialer := &net.Dialer{Timeout: connectTime}
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return impatient{conn}, nil
	}
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// impatient gives up on a peer that takes nothing. One that is gone is found by TCP's keepalive.
type impatient struct{ net.Conn }

// Write implements net.Conn.
func (c impatient) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(stallTime)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Close drops the connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// PeerError is what the other hvd said.
type PeerError struct {
	Code    string // api/errors.go has them all; empty if there was none
	Message string
	Status  int // of HTTP
}

// Error is the other one's own text.
func (e *PeerError) Error() string { return "the other hvd says: " + e.Message }

// Hello asks how the volume is there.
func (c *Client) Hello(ctx context.Context, h Hello) (s State, err error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	text, err := json.Marshal(h)
	if err != nil {
		return s, err
	}
	answer, err := c.do(ctx, http.MethodPost, c.path(), "application/json", bytes.NewReader(text))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(answer, &s); err != nil {
		return s, fmt.Errorf("read the answer of %s: %w", c.target, err)
	}
	return s, nil
}

// Send sends what send writes as a stream, and returns when the point is complete and durable at the other side.
func (c *Client) Send(ctx context.Context, b Begin, send func(ctx context.Context, w io.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, out := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := send(ctx, out)
		_ = out.CloseWithError(err) // nil is the end of the body
		sent <- err
	}()
	_, err := c.do(ctx, http.MethodPut, c.path()+"/points/"+url.PathEscape(b.Point)+"?"+b.query().Encode(), ContentType, body)
	_ = body.Close() // send fails now, if it is not done
	cancel()
	own := <-sent
	var said *PeerError
	if errors.As(err, &said) || own == nil || errors.Is(own, io.ErrClosedPipe) {
		return err
	}
	return own
}

// path is that of the target's volume.
func (c *Client) path() string { return "/v1/replicas/" + url.PathEscape(c.target.Volume) }

// do sends a request and returns the body of its answer.
func (c *Client) do(ctx context.Context, method, path, contentType string, body io.Reader) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", contentType)
	answer, err := c.http.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // without the request's address, which says nothing to the user
		}
		return nil, fmt.Errorf("reach %s: %w", c.target, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, MaxGroupMessage))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.target, err)
	}
	if answer.StatusCode == http.StatusOK {
		return text, nil
	}
	var fault struct {
		Errors []struct {
			Message    string            `json:"message"`
			Extensions map[string]string `json:"extensions"`
		} `json:"errors"`
	}
	if json.Unmarshal(text, &fault) == nil && len(fault.Errors) > 0 {
		return nil, &PeerError{fault.Errors[0].Extensions["code"], fault.Errors[0].Message, answer.StatusCode}
	}
	return nil, &PeerError{"", fmt.Sprintf("HTTP status %d", answer.StatusCode), answer.StatusCode}
}
