package tlspsk

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
)

// Hello is a connection whose client has sent its ClientHello.
type Hello struct {
	c     *Conn
	hello *clientHello
	read  []byte // as it came
}

// maxHello bounds a ClientHello, in bytes; real ones have 300 to 2,000. Its records may have twice as much, since it may come in pieces.
const maxHello = 16 << 10

// ReadHello reads the first message of a client and nothing behind it. If that is no ClientHello the client gets the alert, and the connection is of no more use. Deadlines
// are those of nc.
func ReadHello(nc net.Conn) (*Hello, error) {
	r := &recorder{Conn: nc}
	c := newConn(r)
	hello, err := c.readHello(false)
	if err != nil {
		return nil, c.fail(err)
	}
	c.nc = nc
	return &Hello{c: c, hello: hello, read: r.read}, nil
}

// OffersKey reports whether the client offers a pre-shared key, and so whether Accept is for it.
func (h *Hello) OffersKey() bool {
	_, ok := h.hello.extension(extensionPreSharedKey)
	return ok
}

// Unread returns the connection as it was before ReadHello, for another TLS to begin from the start.
func (h *Hello) Unread() net.Conn { return &unread{Conn: h.c.nc, rest: h.read} }

// recorder is a connection that keeps what is read.
type recorder struct {
	net.Conn
	read []byte
}

// Read implements net.Conn.
func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.read = append(r.read, p[:n]...)
	return n, err
}

// unread is a connection of which something is to be read first.
type unread struct {
	net.Conn
	rest []byte
}

// Read implements net.Conn.
func (u *unread) Read(p []byte) (int, error) {
	if len(u.rest) == 0 {
		return u.Conn.Read(p)
	}
	n := copy(p, u.rest)
	if u.rest = u.rest[n:]; len(u.rest) == 0 {
		u.rest = nil
	}
	return n, nil
}

// readHello reads a ClientHello. Before a second one ChangeCipherSpec may come (RFC 8446, D.4).
func (c *Conn) readHello(second bool) (*clientHello, error) {
	var message []byte
	wire := 0
	for {
		kind, content, err := c.readRecord(nil)
		if err != nil {
			return nil, err
		}
		if wire += recordHeader + len(content); wire > 2*maxHello {
			return nil, failed(alertDecodeError, "more than %d bytes for a ClientHello", 2*maxHello)
		}
		switch {
		case kind == recordAlert && len(message) == 0:
			return nil, readPlainAlert(content)
		case kind == recordChangeCipherSpec && len(message) == 0 && second && bytes.Equal(content, []byte{1}):
			c.in.tidy()
			continue
		case kind != recordHandshake || len(content) == 0:
			return nil, failed(alertUnexpectedMessage, "a record of type %d and %d bytes where a ClientHello belongs", kind, len(content))
		}
		message = append(message, content...)
		c.in.tidy()
		if hello, err := whole(message); hello || err != nil {
			if err != nil {
				return nil, err
			}
			return parseHello(message)
		}
	}
}

// whole reports whether a ClientHello is there, and nothing behind it.
func whole(message []byte) (bool, error) {
	if message[0] != messageClientHello {
		return false, failed(alertUnexpectedMessage, "a handshake message of type %d where a ClientHello belongs", message[0])
	}
	if len(message) < messageHeader {
		return false, nil
	}
	size := messageHeader + int(be.Uint32(message)&0xffffff)
	if size > maxHello {
		return false, failed(alertDecodeError, "a ClientHello of %d bytes", size)
	}
	if len(message) > size {
		return false, failed(alertUnexpectedMessage, "something behind the ClientHello")
	}
	return len(message) == size, nil
}

// readPlainAlert is readAlert before there are keys, where every alert is the end.
func readPlainAlert(content []byte) error {
	if err := readAlert(content); err != nil {
		return err
	}
	return AlertError(alertUserCanceled)
}

// Accept does the handshake with a client that has one of the keys. Of one that has not it says why, for the server's own log, and the client gets an alert that
// does not.
func (h *Hello) Accept(keys *Keys) (*Conn, error) {
	if err := h.accept(keys); err != nil {
		return nil, h.c.fail(err)
	}
	h.c.in.ready = true
	return h.c, nil
}

// accept is one round, or two.
func (h *Hello) accept(keys *Keys) error {
	c := h.c
	h.read = nil
	hello := h.hello
	o, err := readOffer(hello)
	if err != nil {
		return err
	}
	group, shared, err := o.group()
	if err != nil {
		return err
	}
	var said []byte // the messages before the ClientHello that counts, as the transcript has them
	if !shared {
		if said, err = c.retry(hello, group); err != nil {
			return err
		}
		if hello, err = c.readHello(true); err != nil {
			return err
		}
		if !hello.repeats(h.hello) {
			return failed(alertIllegalParameter, "the second ClientHello is another one")
		}
		if o, err = readOffer(hello); err != nil {
			return err
		}
		if len(o.shares) != 1 || o.shares[group] == nil {
			return failed(alertIllegalParameter, "the second ClientHello does not have the key share that was asked for")
		}
	}
	index, early, known := keys.choose(o.identities)
	binder := verifyData(binderKey(early), sha256.Sum256(append(bytes.Clone(said), o.beforeBind...)))
	if !hmac.Equal(binder[:], o.binders[index]) {
		err := &failure{alert: alertDecryptError, why: "a wrong key"}
		_ = c.fail(err) // before it is looked into which of the two it was
		err.why = wrongKey(o.identities[index], known)
		return err
	}
	c.identity = string(o.identities[index])
	return c.agree(hello, o, group, uint16(index), early, append(said, hello.raw...), !shared)
}

// wrongKey says to the server's owner what the client is not told.
func wrongKey(identity []byte, known bool) string {
	shown := identity[:min(len(identity), maxIdentity)]
	if known {
		return fmt.Sprintf("a wrong key for identity %q", shown)
	}
	return fmt.Sprintf("no key for identity %q", shown)
}

// retry asks for a key share of another group. It returns what the transcript holds of this round: the first ClientHello by its hash alone.
func (c *Conn) retry(hello *clientHello, group uint16) (said []byte, err error) {
	random := sha256.Sum256([]byte("HelloRetryRequest"))
	retry := serverHello(random[:], hello.session, appendExtension(nil, extensionKeyShare, byte(group>>8), byte(group)))
	digest := sha256.Sum256(hello.raw)
	said = append(appendMessage(nil, messageHash, digest[:]), retry...)
	flight := c.out.appendRecord(nil, recordHandshake, retry)
	_, err = c.nc.Write(appendChangeCipherSpec(flight, hello))
	return said, err
}

// serverHello is a ServerHello, or a HelloRetryRequest, which is one with a random that says so.
func serverHello(random, session, extensions []byte) []byte {
	extensions = appendExtension(extensions, extensionSupportedVersions, byte(version13>>8), byte(version13&0xff))
	body := be.AppendUint16(nil, versionLegacy)
	body = append(body, random...)
	body = append(body, byte(len(session)))
	body = append(body, session...)
	body = be.AppendUint16(body, suiteAES128)
	body = append(body, 0)
	body = be.AppendUint16(body, uint16(len(extensions)))
	return appendMessage(nil, messageServerHello, append(body, extensions...))
}

// appendChangeCipherSpec appends the record that old middleboxes wait for, to a client that wants it (RFC 8446, D.4).
func appendChangeCipherSpec(dst []byte, hello *clientHello) []byte {
	if len(hello.session) == 0 {
		return dst
	}
	return append(dst, recordChangeCipherSpec, byte(versionLegacy>>8), byte(versionLegacy&0xff), 0, 1, 1)
}

// agree answers a client that has proved its key, and waits for its Finished.
func (c *Conn) agree(hello *clientHello, o *offer, group, index uint16, early secret, said []byte, retried bool) error {
	share, shared, err := o.exchange(group)
	if err != nil {
		return err
	}
	var random [32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return failed(alertInternalError, "read random numbers: %v", err)
	}
	entry := be.AppendUint16(be.AppendUint16(nil, group), uint16(len(share)))
	extensions := appendExtension(nil, extensionKeyShare, append(entry, share...)...)
	extensions = appendExtension(extensions, extensionPreSharedKey, byte(index>>8), byte(index))
	answer := serverHello(random[:], hello.session, extensions)
	said = append(said, answer...)

	handshake := extract(next(early), shared)
	transcript := sha256.Sum256(said)
	server := derive(handshake, "s hs traffic", transcript)
	client := derive(handshake, "c hs traffic", transcript)
	flight := c.out.appendRecord(nil, recordHandshake, answer)
	if !retried {
		flight = appendChangeCipherSpec(flight, hello)
	}
	rest := appendMessage(nil, messageEncryptedExtensions, []byte{0, 0})
	said = append(said, rest...)
	proof := verifyData(server, sha256.Sum256(said))
	finished := appendMessage(nil, messageFinished, proof[:])
	said = append(said, finished...)
	c.out.use(server)
	flight = c.out.appendRecord(flight, recordHandshake, append(rest, finished...))
	if _, err := c.nc.Write(flight); err != nil {
		return err
	}
	master := extract(next(handshake), make([]byte, hashSize))
	transcript = sha256.Sum256(said)
	c.out.use(derive(master, "s ap traffic", transcript))
	c.in.use(client)
	if err := c.readFinished(verifyData(client, transcript)); err != nil {
		return err
	}
	c.in.use(derive(master, "c ap traffic", transcript))
	return nil
}

// readFinished reads the client's Finished.
func (c *Conn) readFinished(want secret) error {
	const most = maxMessage + 1 // a byte each, and ChangeCipherSpec
	for range most {
		kind, content, err := c.readRecord(nil)
		if err != nil {
			return err
		}
		switch kind {
		case recordChangeCipherSpec:
			if !bytes.Equal(content, []byte{1}) || len(c.in.message) > 0 {
				return failed(alertUnexpectedMessage, "a malformed ChangeCipherSpec")
			}
		case recordAlert:
			return readPlainAlert(content)
		case recordHandshake:
			message, err := c.in.collect(content)
			if err != nil {
				return err
			}
			if message != nil {
				return checkFinished(message, want)
			}
		default:
			return failed(alertUnexpectedMessage, "a record of type %d where Finished belongs", kind)
		}
		c.in.tidy()
	}
	return failed(alertUnexpectedMessage, "more than %d records where Finished belongs", most)
}

func checkFinished(message []byte, want secret) error {
	if message[0] != messageFinished {
		return failed(alertUnexpectedMessage, "a handshake message of type %d where Finished belongs", message[0])
	}
	if !hmac.Equal(message[messageHeader:], want[:]) {
		return failed(alertDecryptError, "a Finished that does not fit")
	}
	return nil
}
