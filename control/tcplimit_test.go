package control

import (
	"net"
	"testing"
	"time"
)

// TestHandshakesHaveLittleRoom: who only knows the port takes up the part for handshakes, from one address half of it, and those that have got through keep theirs.
func TestHandshakesHaveLittleRoom(t *testing.T) {
	refused := make(chan net.Addr, 100)
	l, err := listenLimited("127.0.0.1:0", tcpBounds{settled: 3, shaking: 4, address: 2}, func(from net.Addr) { refused <- from })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan *limitedConn, 100)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- nc.(*limitedConn)
		}
	}()
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		nc, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		return nc
	}
	enters := func(from string) *limitedConn {
		t.Helper()
		dial(from)
		select {
		case nc := <-accepted:
			return nc
		case <-refused:
			t.Fatalf("a client from %s was refused", from)
		case <-time.After(30 * time.Second):
			t.Fatal("nobody came")
		}
		return nil
	}
	isRefused := func(from string) {
		t.Helper()
		dial(from)
		select {
		case <-accepted:
			t.Fatalf("one client too many from %s was accepted", from)
		case <-refused:
		case <-time.After(30 * time.Second):
			t.Fatal("nobody came")
		}
	}
	a, b := enters("127.0.0.1"), enters("127.0.0.1")
	isRefused("127.0.0.1")
	c, d := enters("127.0.0.2"), enters("127.0.0.2")
	isRefused("127.0.0.3") // four in the handshake
	for _, nc := range []*limitedConn{a, b, c} {
		if err := nc.Settle(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Settle(); err == nil {
		t.Error("a fourth client got through")
	}
	<-refused
	_ = d.Close()
	e := enters("127.0.0.3") // those that are through take up no room of this kind
	_ = a.Close()
	_ = a.Close() // counts once
	if err := e.Settle(); err != nil {
		t.Errorf("no room though a client has left: %v", err)
	}
	_ = e.Close()
	_ = b.Close()
	_ = c.Close()
	if ll := l.(*limitedListener); ll.settled != 0 || ll.shaking != 0 || len(ll.from) != 0 {
		t.Errorf("left: %d, %d in the handshake, %v", ll.settled, ll.shaking, ll.from)
	}
}
