package e2e

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
)

// Options of the handshake that tests look for.
const (
	optStructuredReply = 8
	optExtendedHeaders = 11
)

// heardBytes is how much of what hvd says at first a middleman remembers: more than any handshake of a test takes.
const heardBytes = 64 << 10

// middleman passes bytes between clients and hvd's NBD socket. It remembers what hvd says at first, and may cut connections.
type middleman struct {
	uri    string
	socket string
	listen net.Listener
	cut    func(toServer bool) int // bytes to let through before a cut, for each direction of a connection; negative: all

	running sync.WaitGroup
	mu      sync.Mutex
	heard   []byte // all connections, one after the other
	conns   []net.Conn
}

// middleman starts one on a socket of its own. Without cut it changes nothing. It ends with the test.
func (d *daemon) middleman(export string, cut func(toServer bool) int) *middleman {
	d.t.Helper()
	m := &middleman{socket: filepath.Join(shortDir(d.t), "nbd.sock"), cut: cut}
	m.uri = "nbd+unix:///" + export + "?socket=" + m.socket
	listen, err := net.Listen("unix", m.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	m.listen = listen
	m.running.Go(func() { m.accept(d.nbdSocket()) })
	d.t.Cleanup(m.close)
	return m
}

func (m *middleman) accept(server string) {
	for {
		client, err := m.listen.Accept()
		if err != nil {
			return // closed
		}
		behind, err := net.Dial("unix", server)
		if err != nil {
			client.Close()
			continue
		}
		m.mu.Lock()
		m.conns = append(m.conns, client, behind)
		m.mu.Unlock()
		m.running.Go(func() { m.pass(behind, client, m.limit(true), nil) })
		m.running.Go(func() { m.pass(client, behind, m.limit(false), m) })
	}
}

func (m *middleman) limit(toServer bool) int {
	if m.cut == nil {
		return -1
	}
	return m.cut(toServer)
}

// pass copies until one side ends or the limit is reached, and then closes both.
func (m *middleman) pass(to, from net.Conn, limit int, heard io.Writer) {
	var source io.Reader = from
	if limit >= 0 {
		source = io.LimitReader(from, int64(limit))
	}
	if heard != nil {
		source = io.TeeReader(source, heard)
	}
	_, _ = io.Copy(to, source) // a broken connection is what this is for
	to.Close()
	from.Close()
}

// Write implements io.Writer: it remembers what hvd says.
func (m *middleman) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard = append(m.heard, p[:min(len(p), heardBytes-min(len(m.heard), heardBytes))]...)
	return len(p), nil
}

// agreed reports whether hvd acknowledged an option.
func (m *middleman) agreed(option uint32) bool {
	reply := binary.BigEndian.AppendUint64(nil, 0x3e889045565a9)
	reply = binary.BigEndian.AppendUint32(reply, option)
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Contains(m.heard, binary.BigEndian.AppendUint32(reply, repAck))
}

// close ends all connections and waits for all goroutines.
func (m *middleman) close() {
	m.listen.Close()
	m.mu.Lock()
	for _, c := range m.conns {
		c.Close()
	}
	m.mu.Unlock()
	m.running.Wait()
}
