package remote

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/throttle"
)

const (
	// maxConns bounds the connections of a client: a host lets a client have as many requests at once.
	maxConns = 16
	// expectBytes is from where on the host is asked before a body is sent.
	expectBytes = 64 << 10
	expectTime  = 10 * time.Second // for the answer; then it is sent all the same
	dialTime    = 30 * time.Second
	bufferBytes = 64 << 10
)

// newTransport returns a transport to one host, whose connections give up when they are silent, and whose bytes go through a bucket.
func newTransport(o Options, secured *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: min(o.Stall, dialTime), KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, o.Address())
			if err != nil {
				return nil, err
			}
			return throttle.NewConn(c, o.Stall, o.Limit), nil
		},
		TLSClientConfig: secured, TLSHandshakeTimeout: min(o.Stall, dialTime), ExpectContinueTimeout: expectTime,
		IdleConnTimeout: o.Stall, MaxConnsPerHost: maxConns, MaxIdleConnsPerHost: maxConns, MaxResponseHeaderBytes: 64 << 10,
		DisableCompression: true, ReadBufferSize: bufferBytes, WriteBufferSize: bufferBytes,
	}
}
