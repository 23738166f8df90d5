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
		return throttle.NewConn(c, stall, bucket), nil
	}
	t.TLSHandshakeTimeout = min(stall, 30*time.Second)
	t.IdleConnTimeout = stall
	t.MaxIdleConnsPerHost = 16
	t.DisableCompression = true
	return t
}
