package nbd

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// Bounds on what a client may send before it has an export.
const (
	maxOptions       = 1024     // options of one handshake
	maxOption        = 16 << 10 // bytes of option data that are looked at
	maxOptionDrained = 1 << 20  // bytes of option data that are thrown away with an error instead of the client
)

// Why a handshake ended.
var (
	errAborted      = errors.New("nbd: client has what it wanted")
	errNotNewstyle  = errors.New("nbd: client lacks the fixed newstyle handshake")
	errClientFlags  = errors.New("nbd: unknown client flags")
	errOptionMagic  = errors.New("nbd: option with a wrong magic number")
	errOptionLength = errors.New("nbd: option longer than 1 MiB")
	errOptionCount  = errors.New("nbd: more than 1024 options")
	errNotGo        = errors.New("nbd: client with extended headers asked by EXPORT_NAME")
	errPlainText    = errors.New("nbd: client asked by EXPORT_NAME in plain text where TLS is required")
	errClosing      = errors.New("nbd: server is closing")
)

// handshake greets the client and haggles until it has chosen an export, then c.dev is set. If c.dev is nil in the end, the error says why
// the client went away; nil means that it only asked.
func (c *conn) handshake() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout)); err != nil {
		return err
	}
	err := c.haggle()
	if errors.Is(err, errAborted) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if c.draining.Load() { // drain may have set its deadline before we cleared ours
		return errClosing
	}
	return nil
}

// haggle greets the client and answers its options until one of them ends the handshake.
func (c *conn) haggle() error {
	fixed, err := c.greet()
	if err != nil {
		return err
	}
	for range maxOptions {
		var head [16]byte
		if _, err := io.ReadFull(c.stream, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return errAborted
			}
			return err
		}
		if be.Uint64(head[:]) != magicOption {
			return errOptionMagic
		}
		opt, size := be.Uint32(head[8:]), be.Uint32(head[12:])
		if !fixed && opt != optExportName {
			return errNotNewstyle
		}
		data, err := c.optionData(opt, size)
		if err != nil {
			return err
		}
		if data == nil {
			continue
		}
		if err := c.option(opt, data); err != nil || c.dev != nil {
			return err
		}
	}
	return errOptionCount
}

// greet sends the server's greeting and reads the client's flags.
func (c *conn) greet() (fixed bool, err error) {
	var hello [18]byte
	be.PutUint64(hello[:], magicInit)
	be.PutUint64(hello[8:], magicOption)
	be.PutUint16(hello[16:], flagFixedNewstyle|flagNoZeroes)
	if _, err := c.stream.Write(hello[:]); err != nil {
		return false, err
	}
	var answer [4]byte
	if _, err := io.ReadFull(c.stream, answer[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return false, errAborted
		}
		return false, err
	}
	flags := be.Uint32(answer[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return false, fmt.Errorf("%w %#x", errClientFlags, flags)
	}
	c.noZeroes = flags&flagNoZeroes != 0
	return flags&flagFixedNewstyle != 0, nil
}

// optionData reads the data of an option. It is nil, and the option answered, if the data is too long to be looked at.
func (c *conn) optionData(opt, size uint32) ([]byte, error) {
	if size > maxOptionDrained {
		return nil, errOptionLength
	}
	if size <= maxOption {
		data := make([]byte, size)
		_, err := io.ReadFull(c.stream, data)
		return data, err
	}
	if _, err := io.CopyN(io.Discard, c.stream, int64(size)); err != nil {
		return nil, err
	}
	if opt == optExportName {
		return nil, errOptionLength // this option has no reply
	}
	if c.mustEncrypt() {
		return nil, c.optionPlain(opt, []byte("too long"))
	}
	return nil, c.optionReply(opt, repErrTooBig, []byte("option data longer than 16 KiB"))
}

// optionReply sends one reply to an option.
func (c *conn) optionReply(opt, kind uint32, data []byte) error {
	_, err := c.stream.Write(appendOptionReply(nil, opt, kind, data))
	return err
}

func appendOptionReply(dst []byte, opt, kind uint32, data []byte) []byte {
	dst = be.AppendUint64(dst, magicOptionReply)
	dst = be.AppendUint32(dst, opt)
	dst = be.AppendUint32(dst, kind)
	dst = be.AppendUint32(dst, uint32(len(data)))
	return append(dst, data...)
}
