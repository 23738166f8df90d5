package nbd

import (
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Options tunes a server. The zero value works: each field that is zero takes its default.
type Options struct {
	// MaxConnections bounds the connections at once, those in handshake included. One more is closed at once. Default 4096.
	MaxConnections int
	// InFlightBytes bounds the buffers lent to requests, in bytes, over all connections: a quarter goes to the readers' input and output
	// buffers, the rest to long payloads and to requests at a worker. Readers beyond that quarter make do with 9 KiB each, which are not
	// counted. Default 64 MiB, at least 48 MiB.
	InFlightBytes int64
	// MaxSlow bounds, for one connection, the requests handed to workers and not yet replied. Default 128.
	MaxSlow int
	// HandshakeTimeout is the time a client has from connecting to the end of the handshake. Default 10 s.
	HandshakeTimeout time.Duration
	// StallTimeout is the time a client may leave a reply unread or a request unfinished while another waits for the memory that it
	// holds; an nth of it while n others wait, at least a fifth. Without such pressure a client may stall for ever. Default 10 s.
	StallTimeout time.Duration
	// Events are told what happens. Default: nobody is.
	Events Events
}

// Defaults and bounds of Options.
const (
	defaultMaxConnections = 4096
	defaultInFlightBytes  = 64 << 20
	minInFlightBytes      = 48 << 20
	defaultMaxSlow        = 128
	maxMaxSlow            = 1 << 16
	defaultTimeout        = 10 * time.Second
)

// Validate reports the first field that makes no sense. The error wraps block.ErrInvalid.
func (o *Options) Validate() error {
	switch {
	case o.MaxConnections < 0:
		return fmt.Errorf("nbd: MaxConnections %d is negative: %w", o.MaxConnections, block.ErrInvalid)
	case o.InFlightBytes != 0 && o.InFlightBytes < minInFlightBytes:
		return fmt.Errorf("nbd: InFlightBytes %d is below %d, too little for one request of %d: %w",
			o.InFlightBytes, minInFlightBytes, MaxPayload, block.ErrInvalid)
	case o.MaxSlow < 0 || o.MaxSlow > maxMaxSlow:
		return fmt.Errorf("nbd: MaxSlow %d is not within 0..%d: %w", o.MaxSlow, maxMaxSlow, block.ErrInvalid)
	case o.HandshakeTimeout < 0:
		return fmt.Errorf("nbd: HandshakeTimeout %v is negative: %w", o.HandshakeTimeout, block.ErrInvalid)
	case o.StallTimeout < 0:
		return fmt.Errorf("nbd: StallTimeout %v is negative: %w", o.StallTimeout, block.ErrInvalid)
	}
	return nil
}

// withDefaults returns o with its zero fields filled in.
func (o Options) withDefaults() Options {
	if o.MaxConnections == 0 {
		o.MaxConnections = defaultMaxConnections
	}
	if o.InFlightBytes == 0 {
		o.InFlightBytes = defaultInFlightBytes
	}
	if o.MaxSlow == 0 {
		o.MaxSlow = defaultMaxSlow
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = defaultTimeout
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = defaultTimeout
	}
	return o
}
