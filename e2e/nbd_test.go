package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// NBD commands and flags, as in the protocol's text.
const (
	nbdRead   = 0
	nbdWrite  = 1
	nbdFlush  = 3
	nbdTrim   = 4
	nbdZeroes = 6

	nbdFUA = 1

	optGo   = 7
	repAck  = 1
	repInfo = 3
)

// optionError is a negative reply to an option.
type optionError struct{ reply uint32 }

func (e *optionError) Error() string { return fmt.Sprintf("NBD option was refused with %#x", e.reply) }

// repErrUnknown is NBD_REP_ERR_UNKNOWN: no such export.
const repErrUnknown = 1<<31 + 6

// Errors as NBD numbers them, which are Linux's numbers.
const (
	errIO      = syscall.EIO
	errInvalid = syscall.EINVAL
	errNoSpace = syscall.ENOSPC
)

// nbdClient speaks NBD with simple replies. One request is under way at a time, except where send and receive are used directly.
type nbdClient struct {
	conn   net.Conn
	cookie uint64
	size   uint64
}

// dialNBD enters transmission on an export.
func dialNBD(socket, export string) (*nbdClient, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{conn: conn}
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := c.negotiate(export); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// openNBD is dialNBD for what must work; the connection ends with the test.
func openNBD(t *testing.T, socket, export string) *nbdClient {
	t.Helper()
	c, err := dialNBD(socket, export)
	if err != nil {
		t.Fatalf("open export %q on %s: %v", export, socket, err)
	}
	t.Cleanup(func() { c.conn.Close() })
	return c
}

func (c *nbdClient) negotiate(export string) error {
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c.conn, hello); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	b := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	if _, err := c.conn.Write(binary.BigEndian.AppendUint16(b, 0)); err != nil {
		return err
	}
	for {
		head := make([]byte, 20)
		if _, err := io.ReadFull(c.conn, head); err != nil {
			return fmt.Errorf("reply to GO: %w", err)
		}
		data := make([]byte, binary.BigEndian.Uint32(head[16:]))
		if _, err := io.ReadFull(c.conn, data); err != nil {
			return fmt.Errorf("reply to GO: %w", err)
		}
		switch reply := binary.BigEndian.Uint32(head[12:]); {
		case reply == repAck:
			return nil
		case reply != repInfo:
			return &optionError{reply}
		case binary.BigEndian.Uint16(data) == 0:
			c.size = binary.BigEndian.Uint64(data[2:])
		}
	}
}

// send puts one request on the wire and returns its cookie.
func (c *nbdClient) send(command, flags uint16, off uint64, length int, data []byte) (uint64, error) {
	c.cookie++
	b := make([]byte, 0, 28+len(data))
	b = binary.BigEndian.AppendUint32(b, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, c.cookie)
	b = binary.BigEndian.AppendUint64(b, off)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	_, err := c.conn.Write(append(b, data...))
	return c.cookie, err
}

// receive takes one reply of a request that brings no data.
func (c *nbdClient) receive() (cookie uint64, refused syscall.Errno, err error) {
	var b [16]byte
	if _, err := io.ReadFull(c.conn, b[:]); err != nil {
		return 0, 0, err
	}
	if magic := binary.BigEndian.Uint32(b[:]); magic != 0x67446698 {
		return 0, 0, fmt.Errorf("magic of a reply is %#x", magic)
	}
	return binary.BigEndian.Uint64(b[8:]), syscall.Errno(binary.BigEndian.Uint32(b[4:])), nil
}

// do runs one request. The error is a syscall.Errno if the server replied with one.
func (c *nbdClient) do(command, flags uint16, off uint64, length int, data []byte) error {
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	sent, err := c.send(command, flags, off, length, data)
	if err != nil {
		return err
	}
	cookie, refused, err := c.receive()
	switch {
	case err != nil:
		return err
	case cookie != sent:
		return fmt.Errorf("cookie of a reply is %d, want %d", cookie, sent)
	case refused != 0:
		return refused
	}
	return nil
}

func (c *nbdClient) read(p []byte, off uint64) error {
	if err := c.do(nbdRead, 0, off, len(p), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(c.conn, p)
	return err
}

func (c *nbdClient) write(p []byte, off uint64) error { return c.do(nbdWrite, 0, off, len(p), p) }
func (c *nbdClient) flush() error                     { return c.do(nbdFlush, 0, 0, 0, nil) }
func (c *nbdClient) trim(off uint64, n int) error     { return c.do(nbdTrim, 0, off, n, nil) }
