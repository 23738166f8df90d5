package tlspsk

import "encoding/binary"

// The names below are those of RFC 8446 and the values are part of the wire format. All integers on the wire are big-endian.

var be = binary.BigEndian

// Content types of records.
const (
	recordChangeCipherSpec byte = 20
	recordAlert            byte = 21
	recordHandshake        byte = 22
	recordData             byte = 23
)

// Types of handshake messages.
const (
	messageClientHello         byte = 1
	messageServerHello         byte = 2
	messageEncryptedExtensions byte = 8
	messageFinished            byte = 20
	messageKeyUpdate           byte = 24
	messageHash                byte = 254
)

// Extensions that are looked at.
const (
	extensionSupportedGroups   uint16 = 10
	extensionPadding           uint16 = 21
	extensionPreSharedKey      uint16 = 41
	extensionEarlyData         uint16 = 42
	extensionSupportedVersions uint16 = 43
	extensionCookie            uint16 = 44
	extensionKeyExchangeModes  uint16 = 45
	extensionKeyShare          uint16 = 51
)

const (
	versionLegacy uint16 = 0x0303 // what TLS 1.3 says where its version used to be
	version13     uint16 = 0x0304
	suiteAES128   uint16 = 0x1301 // TLS_AES_128_GCM_SHA256
	groupP256     uint16 = 23
	groupX25519   uint16 = 29
	modeDHE       byte   = 1 // psk_dhe_ke
)

// Sizes, in bytes.
const (
	recordHeader  = 5
	messageHeader = 4
	maxPlain      = 16 << 10       // content of a record
	maxCipher     = maxPlain + 256 // body of a protected record
	tagSize       = 16
	hashSize      = 32
)

// cursor reads what somebody else wrote. After the first thing that is not there as a whole it is bad and returns nothing.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || len(c.b) < n {
		c.bad = true
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) u8() int {
	if p := c.take(1); p != nil {
		return int(p[0])
	}
	return 0
}

func (c *cursor) u16() int {
	if p := c.take(2); p != nil {
		return int(be.Uint16(p))
	}
	return 0
}

// vector8 and vector16 read a vector behind a length of 8 or 16 bits.
func (c *cursor) vector8() []byte  { return c.take(c.u8()) }
func (c *cursor) vector16() []byte { return c.take(c.u16()) }

// more reports whether there is something left to read.
func (c *cursor) more() bool { return !c.bad && len(c.b) > 0 }

// whole reports whether everything was there and nothing is left.
func (c *cursor) whole() bool { return !c.bad && len(c.b) == 0 }

// appendMessage appends a handshake message.
func appendMessage(dst []byte, kind byte, body []byte) []byte {
	dst = be.AppendUint32(dst, uint32(kind)<<24|uint32(len(body)))
	return append(dst, body...)
}

// appendExtension appends an extension.
func appendExtension(dst []byte, kind uint16, body ...byte) []byte {
	dst = be.AppendUint16(dst, kind)
	dst = be.AppendUint16(dst, uint16(len(body)))
	return append(dst, body...)
}
