package s3

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/throttle"
)

// newTransport returns a transport whose connections give up when they are silent for so long, and whose bytes go through a bucket.
func newTransport(stall time.Duration, bucket *throttle.Bucket) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	dialer := &net.Dialer{Timeout: min(stall, 30*time.Second), KeepAlive: 30 * time.Second}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &conn{Conn: c, stall: stall, bucket: bucket}, nil
	}
	t.TLSHandshakeTimeout = min(stall, 30*time.Second)
	t.IdleConnTimeout = stall
	t.MaxIdleConnsPerHost = 16
	t.DisableCompression = true
	return t
}

// conn is a connection with a deadline that moves on with each byte.
type conn struct {
	net.Conn
	stall  time.Duration
	bucket *throttle.Bucket
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	if c.bucket != nil {
		p = p[:min(len(p), c.bucket.Piece())]
	}
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if err == nil {
		err = c.bucket.Take(context.Background(), n)
	}
	return n, err
}

// Write implements net.Conn. While bytes go out an answer may be late.
func (c *conn) Write(p []byte) (done int, err error) {
	for done < len(p) {
		piece := p[done:]
		if c.bucket != nil {
			piece = piece[:min(len(piece), c.bucket.Piece())]
			if err := c.bucket.Take(context.Background(), len(piece)); err != nil {
				return done, err
			}
		}
		if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
			return done, err
		}
		n, err := c.Conn.Write(piece)
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}
