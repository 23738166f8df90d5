package control

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// A thousand clients that come and go, and a volume whose client comes back all the time, leave a few lines.
func TestClientLog(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1_700_000_000, 0)
	l := newClientLog(slog.New(slog.NewTextHandler(&out, nil)), func() time.Time { return now })
	peer := func(i int) nbd.Peer {
		return nbd.Peer{Export: "v", Addr: &net.UnixAddr{Name: fmt.Sprint(i), Net: "unix"}}
	}
	for i := range 1000 {
		l.came(peer(i))
	}
	for i := range 1000 {
		var err error
		if i%2 == 0 {
			err = errors.New("connection reset")
		}
		l.went(peer(i), err)
	}
	lines := func() []string { return strings.Split(strings.TrimSpace(out.String()), "\n") }
	if got := lines(); len(got) != 3 || !strings.Contains(got[0], "first client") || !strings.Contains(got[1], "lost") || !strings.Contains(got[2], "last client") {
		t.Fatalf("%d lines:\n%s", len(got), out.String())
	}
	for i := range 50 {
		l.came(peer(i))
		l.went(peer(i), nil)
	}
	now = now.Add(2 * time.Minute)
	l.came(peer(1))
	l.came(nbd.Peer{Export: "other"})
	if got := lines(); len(got) != 5 || !strings.Contains(got[3], "heldBack=50") || !strings.Contains(got[4], "volume=other") {
		t.Fatalf("%d lines:\n%s", len(got), out.String())
	}
	if l.went(peer(1), nil); len(l.now) != 1 {
		t.Errorf("%v", l.now)
	}
}
