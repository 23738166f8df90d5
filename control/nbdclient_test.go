package control

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// dialNBD connects to an export with NBD_OPT_EXPORT_NAME, the shortest handshake there is. It returns nil when the server closes
// instead, which is how that option is refused.
func dialNBD(t *testing.T, socket, export string) net.Conn {
	t.Helper()
	return dialNBDAt(t, "unix", socket, export)
}

// dialNBDAt is dialNBD over any network.
func dialNBDAt(t *testing.T, network, address, export string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatalf("dial %s: %v", address, err)
	}
	t.Cleanup(func() { conn.Close() })
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(conn, greeting); err != nil {
		t.Fatalf("greeting: %v", err)
	}
	request := binary.BigEndian.AppendUint32(nil, 1|2) // fixed newstyle, no zeroes
	request = append(request, "IHAVEOPT"...)
	request = binary.BigEndian.AppendUint32(request, 1)
	request = binary.BigEndian.AppendUint32(request, uint32(len(export)))
	request = append(request, export...)
	if _, err := conn.Write(request); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 10) // size and flags
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil
	}
	return conn
}

// gone waits until the server has closed a connection.
func gone(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Fatalf("read %d bytes from a connection that should be closed", n)
	}
}
