package tlspsk

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// rawBuffer holds what was read from the connection: one record, and some of the next.
type rawBuffer [recordHeader + maxCipher + 4096]byte

// rawBuffers lends them: a connection has one only while a record is there.
var rawBuffers = sync.Pool{New: func() any { return new(rawBuffer) }}

// maxMessage is the longest handshake message after ClientHello, Finished.
const maxMessage = messageHeader + hashSize

// Read implements net.Conn. At the end it returns io.EOF if the peer said so, and an error that wraps io.ErrUnexpectedEOF if the connection was just cut.
func (c *Conn) Read(p []byte) (int, error) {
	c.in.Lock()
	defer c.in.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for len(c.in.plain) == 0 {
		if c.in.err != nil {
			return 0, c.in.err
		}
		n, err := c.readData(p)
		if err != nil {
			return 0, c.fail(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	n := copy(p, c.in.plain)
	c.in.plain = c.in.plain[n:]
	c.in.tidy()
	return n, nil
}

// readData reads one record. Its data goes to p if that has room for it, and then n is its length, else to in.plain.
func (c *Conn) readData(p []byte) (n int, err error) {
	kind, content, err := c.readRecord(p)
	if err != nil {
		return 0, err
	}
	defer c.in.tidy()
	if kind == recordData && len(c.in.message) == 0 {
		if len(content) == 0 {
			return 0, c.useless()
		}
		c.in.useless = 0
		if c.in.records >= c.renewAt && !c.in.asked {
			c.in.asked = true
			c.ask.Store(true)
		}
		if &content[0] == &p[0] {
			return len(content), nil
		}
		c.in.plain = content
		return 0, nil
	}
	if err := c.useless(); err != nil {
		return 0, err
	}
	switch {
	case kind == recordHandshake:
		return 0, c.readKeyUpdate(content)
	case kind == recordAlert && len(c.in.message) == 0:
		return 0, readAlert(content)
	}
	return 0, failed(alertUnexpectedMessage, "a record of type %d", kind)
}

// useless counts records that bring no data: a peer must not keep the reader busy with them.
func (c *Conn) useless() error {
	if c.in.useless++; c.in.useless > maxUseless {
		return failed(alertUnexpectedMessage, "more than %d records without data", maxUseless)
	}
	return nil
}

// readKeyUpdate goes on with the peer's next secret. It is the one message that there is after the handshake.
func (c *Conn) readKeyUpdate(content []byte) error {
	message, err := c.in.collect(content)
	if message == nil || err != nil {
		return err
	}
	if message[0] != messageKeyUpdate {
		return failed(alertUnexpectedMessage, "a handshake message of type %d", message[0])
	}
	if len(message) != messageHeader+1 || message[messageHeader] > 1 {
		return failed(alertIllegalParameter, "malformed KeyUpdate")
	}
	c.in.renew()
	c.in.asked = false
	if message[messageHeader] == 1 {
		c.answer.Store(true)
	}
	return nil
}

// collect appends a record's content to what there is of a handshake message, and returns the message when it is whole. It must end with its record, since the keys change behind it.
func (in *input) collect(content []byte) ([]byte, error) {
	if len(content) == 0 {
		return nil, failed(alertUnexpectedMessage, "an empty handshake record")
	}
	if len(in.message)+len(content) > maxMessage {
		return nil, failed(alertUnexpectedMessage, "a handshake message that is too long")
	}
	in.message = append(in.message, content...)
	if len(in.message) < messageHeader {
		return nil, nil
	}
	switch whole := messageHeader + int(be.Uint32(in.message)&0xffffff); {
	case whole > maxMessage:
		return nil, failed(alertUnexpectedMessage, "a handshake message of %d bytes", whole)
	case len(in.message) > whole:
		return nil, failed(alertUnexpectedMessage, "something behind a handshake message, where the keys change")
	case len(in.message) < whole:
		return nil, nil
	}
	message := in.message
	in.message = nil
	return message, nil
}

// readAlert returns what the peer ends the connection with, nil if it does not. Levels are meaningless (RFC 8446, 6).
func readAlert(content []byte) error {
	if len(content) != 2 {
		return failed(alertDecodeError, "malformed alert")
	}
	switch a := alert(content[1]); a {
	case alertCloseNotify:
		return io.EOF
	case alertUserCanceled: // close_notify follows
		return nil
	default:
		return AlertError(a)
	}
}

// readRecord reads one record and takes its protection off, into dst if that is long enough. What it returns may lie in in.raw and is good until the next tidy.
func (c *Conn) readRecord(dst []byte) (kind byte, content []byte, err error) {
	in := &c.in
	if in.records >= 2*c.renewAt {
		return 0, nil, failed(alertInternalError, "the peer does not renew its keys")
	}
	header, err := c.readHeader()
	if err != nil {
		return 0, nil, err
	}
	if header[0] < recordChangeCipherSpec || header[0] > recordData || header[1] != byte(versionLegacy>>8) {
		return 0, nil, failed(alertUnexpectedMessage, "what came is no TLS")
	}
	size := int(be.Uint16(header[3:]))
	if size > maxCipher || in.aead == nil && size > maxPlain {
		return 0, nil, failed(alertRecordOverflow, "a record of %d bytes", size)
	}
	if err := c.need(recordHeader + size); err != nil {
		return 0, nil, err
	}
	header = in.raw[in.r : in.r+recordHeader]
	body := in.raw[in.r+recordHeader : in.r+recordHeader+size]
	in.r += recordHeader + size
	kind = header[0]
	if in.aead != nil && kind == recordData {
		return in.open(dst, header, body)
	}
	if in.ready {
		return 0, nil, failed(alertUnexpectedMessage, "a record of type %d in plain text", kind)
	}
	if kind == recordHandshake && in.aead != nil || kind == recordData {
		return 0, nil, failed(alertUnexpectedMessage, "a record of type %d at the wrong time", kind)
	}
	return kind, body, nil
}

// readHeader waits for the head of a record. While nothing is there it holds no buffer.
func (c *Conn) readHeader() ([]byte, error) {
	in := &c.in
	if in.raw == nil {
		for in.headLen < recordHeader {
			n, err := c.nc.Read(in.head[in.headLen:])
			if in.headLen += n; n == 0 {
				return nil, cut(err)
			}
		}
		in.raw, _ = rawBuffers.Get().(*rawBuffer)
		in.r, in.w = 0, copy(in.raw[:], in.head[:])
		in.headLen = 0
	}
	if err := c.need(recordHeader); err != nil {
		return nil, err
	}
	return in.raw[in.r : in.r+recordHeader], nil
}

// need reads until n bytes are there, and as much of what follows as there is.
func (c *Conn) need(n int) error {
	in := &c.in
	if in.w-in.r < n && len(in.raw)-in.r < n {
		in.w = copy(in.raw[:], in.raw[in.r:in.w])
		in.r = 0
	}
	for in.w-in.r < n {
		to := in.raw[in.w:]
		if !in.ready { // nothing is read ahead that may be meant for somebody else
			to = in.raw[in.w : in.r+n]
		}
		m, err := c.nc.Read(to)
		if in.w += m; m == 0 {
			return cut(err)
		}
	}
	return nil
}

// tidy gives the buffer back if nothing is left in it.
func (in *input) tidy() {
	if in.raw != nil && in.r == in.w && len(in.plain) == 0 {
		rawBuffers.Put(in.raw)
		in.raw, in.plain = nil, nil
	}
}

// cut says that a connection ended without close_notify: what was sent before may not be all.
func cut(err error) error {
	if err == nil {
		return io.ErrNoProgress
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("tlspsk: cut off without close_notify: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// fail ends reading, with the alert that belongs to err if it has one. Running out of time ends nothing.
func (c *Conn) fail(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	c.in.err = err
	if why, ok := err.(*failure); ok {
		c.dead.Store(true)
		if c.in.ready {
			_ = c.nc.SetWriteDeadline(time.Now().Add(closeTime))
		}
		if c.out.TryLock() {
			if c.out.err == nil {
				_ = c.sendAlertLocked(why.alert) // the connection ends either way
				c.out.err = err
			}
			c.out.Unlock()
		}
	}
	return err
}
