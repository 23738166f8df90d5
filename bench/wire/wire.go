package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Numbers of the NBD protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).
const (
	greetingMagic = 0x4e42444d41474943 // NBDMAGIC
	optionMagic   = 0x49484156454f5054 // IHAVEOPT
	replyMagic    = 0x3e889045565a9
	requestMagic  = 0x25609513
	simpleMagic   = 0x67446698

	optionGo  = 7
	replyAck  = 1
	replyInfo = 3

	mostReply = 1 << 16 // bytes of a reply to an option
)

// Commands of the protocol.
const (
	Read   uint16 = 0
	Write  uint16 = 1
	Flush  uint16 = 3
	Trim   uint16 = 4
	Zeroes uint16 = 6 // write zeroes
)

// Conn is a connection to an export, for one goroutine.
type Conn struct {
	conn net.Conn
	in   *bufio.Reader
	next uint64
}

// answerTime is the longest that a server may take to answer. A write that waits for room may take some time; one that waits for ever ends the job with an error.
const answerTime = time.Minute

// Open connects to an export of the server at a unix socket and gets ready to send commands. The connection ends with ctx; the caller closes it.
func Open(ctx context.Context, socket, export string) (*Conn, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	w := &Conn{conn: conn, in: bufio.NewReaderSize(conn, 8<<10)}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err := w.handshake(export); err != nil {
		return nil, errors.Join(fmt.Errorf("handshake for %s: %w", export, err), conn.Close())
	}
	return w, nil
}

func (w *Conn) handshake(export string) error {
	var greeting struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(w.in, binary.BigEndian, &greeting); err != nil {
		return err
	}
	if greeting.Magic != greetingMagic || greeting.Option != optionMagic {
		return errors.New("not an NBD server")
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(greeting.Flags&3)) // fixed newstyle, no zeroes
	b = binary.BigEndian.AppendUint64(b, optionMagic)
	b = binary.BigEndian.AppendUint32(b, optionGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(append(b, export...), 0, 0) // no information requests
	if _, err := w.conn.Write(b); err != nil {
		return err
	}
	for {
		var reply struct {
			Magic                uint64
			Option, Type, Length uint32
		}
		if err := binary.Read(w.in, binary.BigEndian, &reply); err != nil {
			return err
		}
		if reply.Magic != replyMagic || reply.Length > mostReply {
			return fmt.Errorf("reply %+v", reply)
		}
		if _, err := io.CopyN(io.Discard, w.in, int64(reply.Length)); err != nil {
			return err
		}
		switch reply.Type {
		case replyAck:
			return nil
		case replyInfo:
		default:
			return fmt.Errorf("option refused with %#x", reply.Type)
		}
	}
}

// Do sends a command for length bytes at offset and waits for its reply, a minute at most. data, which stays the caller's, is sent with a Write, and filled by a Read; other commands have none.
func (w *Conn) Do(command uint16, offset uint64, length uint32, data []byte) error {
	w.next++
	if err := w.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(nil, requestMagic)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, w.next)
	b = binary.BigEndian.AppendUint64(b, offset)
	b = binary.BigEndian.AppendUint32(b, length)
	if command == Write {
		b = append(b, data...)
	}
	if _, err := w.conn.Write(b); err != nil {
		return fmt.Errorf("send command %d at %d+%d: %w", command, offset, length, err)
	}
	var reply struct {
		Magic, Error uint32
		Cookie       uint64
	}
	if err := binary.Read(w.in, binary.BigEndian, &reply); err != nil {
		return fmt.Errorf("wait for the reply to command %d at %d+%d: %w", command, offset, length, err)
	}
	if reply.Magic != simpleMagic || reply.Cookie != w.next || reply.Error != 0 {
		return fmt.Errorf("reply %+v to command %d at %d+%d", reply, command, offset, length)
	}
	if command == Read {
		_, err := io.ReadFull(w.in, data)
		return err
	}
	return nil
}

// Close hangs up.
func (w *Conn) Close() error { return w.conn.Close() }
