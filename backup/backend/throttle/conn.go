package throttle

import (
	"context"
	"net"
	"time"
)

// NewConn returns a connection that gives up when it has been silent for so long, and whose bytes go through a bucket, which may be nil.
func NewConn(c net.Conn, stall time.Duration, bucket *Bucket) net.Conn {
	return &conn{Conn: c, stall: stall, bucket: bucket}
}

// conn is a connection with a deadline that moves on with each byte.
type conn struct {
	net.Conn
	stall  time.Duration
	bucket *Bucket
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
