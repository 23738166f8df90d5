package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestBrokenConnections cuts connections anywhere: in the header of a request, in the payload of a write, in a reply, in the handshake. hvd has each write as a whole or not
// at all, all that was replied to, and no client left; another client notices nothing.
func TestBrokenConnections(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	d := startDaemon(t)
	d.disk("disk", bytesText(ledgerSlots*ledgerSlot))
	w := d.watch()
	before := d.openSockets()
	rng := rand.New(rand.NewPCG(11, 0))
	var mu sync.Mutex
	var most, replies int
	m := d.middleman("disk", func(toServer bool) int {
		mu.Lock()
		defer mu.Unlock()
		if toServer {
			return rng.IntN(most)
		}
		return rng.IntN(replies)
	})
	l := newLedger(4)
	for i := range rounds {
		// In turn what breaks first is what the client says or what hvd says: 16 bytes of reply for 64 KiB of a write.
		mu.Lock()
		most, replies = 4<<20, 1<<20
		if i%2 == 1 {
			most, replies = 16<<20, 200+rng.IntN(1000)
		}
		mu.Unlock()
		if err := l.until(m.socket, "disk", func() bool { return false }); err == nil || isRefusal(err) {
			t.Fatalf("round %d: want a broken connection, got %v", i, err)
		}
		d.letGo(1) // the witness
		if err := l.audit(d.nbdSocket(), "disk"); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	mu.Lock()
	most, replies = 1<<20, 8<<20
	mu.Unlock()
	if err := readThroughCuts(m, l); err != nil {
		t.Error(err)
	}
	if l.done == 0 {
		t.Error("no write was replied to")
	}
	m.close()
	d.mustDetach("disk")
	eventually(t, "hvd closes the sockets of clients that are gone", func() bool { return d.openSockets() <= before })
	w.testify()
	// That a client has gone is no failure of hvd, so nobody shall be woken for it.
	if log := d.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("hvd takes broken connections for errors:\n%s", log)
	}
}

func isRefusal(err error) bool {
	var refused syscall.Errno
	var option *optionError
	return errors.As(err, &refused) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) || errors.As(err, &option)
}

// readThroughCuts reads the same slots over connections that break in the replies; what came whole must be right.
func readThroughCuts(m *middleman, l *ledger) error {
	whole := 0
	for range 20 {
		c, err := dialNBD(m.socket, "disk")
		if err != nil {
			continue // cut in the handshake
		}
		got := make([]byte, ledgerSlot)
		for slot := range ledgerSlots {
			if err := c.read(got, uint64(slot)*ledgerSlot); err != nil {
				break
			}
			whole++
			if string(got) != string(l.content(l.replied[slot])) {
				return errors.Join(fmt.Errorf("slot %d reads otherwise over a connection that breaks later", slot), c.conn.Close())
			}
		}
		c.conn.Close()
	}
	if whole == 0 {
		return errors.New("no read came through")
	}
	return nil
}

// openSockets counts the sockets among the daemon's files.
func (d *daemon) openSockets() (n int) {
	d.t.Helper()
	for _, target := range d.openFiles() {
		if strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

// openFiles lists what the daemon's file descriptors are.
func (d *daemon) openFiles() (targets []string) {
	d.t.Helper()
	dir := "/proc/" + strconv.Itoa(d.pid()) + "/fd/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + e.Name()); err == nil { // it may be closed by now
			targets = append(targets, target)
		}
	}
	return targets
}
