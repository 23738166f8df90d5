package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/internal/tlspsk"
)

// mustEncrypt reports whether the client may only ask for TLS, or leave. It is the same from the first option to the last.
func (c *conn) mustEncrypt() bool { return c.forced && c.encrypted == nil }

// optionPlain answers an option of a client that must encrypt first ("FORCEDTLS mode").
func (c *conn) optionPlain(opt uint32, data []byte) error {
	switch opt {
	case optStartTLS:
		return c.optionStartTLS(data)
	case optAbort:
		return c.optionAbort()
	case optExportName:
		return errPlainText // it has no way to say no but to hang up
	}
	return c.optionReply(opt, repErrTLSRequired, []byte("this server wants TLS"))
}

// optionStartTLS answers NBD_OPT_STARTTLS. Nothing that was agreed on in plain text counts afterwards, since anyone may have said it. What the client
// sent behind the option without waiting is taken for its part of the TLS handshake: nothing is read ahead in plain text.
func (c *conn) optionStartTLS(data []byte) error {
	switch {
	case c.tls == nil:
		return c.optionReply(optStartTLS, repErrUnsup, nil)
	case c.encrypted != nil:
		return c.optionReply(optStartTLS, repErrInvalid, []byte("TLS was started before"))
	case len(data) != 0:
		return c.optionReply(optStartTLS, repErrInvalid, []byte("this option takes no data"))
	}
	if err := c.optionReply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	if err := c.encrypt(c.tls.current()); err != nil {
		return fmt.Errorf("nbd: TLS: %w", err)
	}
	c.stream = c.encrypted
	c.framing, c.contexts, c.metaExport = simpleReplies, nil, ""
	return nil
}

// secureConn is a connection under TLS, of either kind.
type secureConn interface {
	net.Conn
	CloseWrite() error
}

// encrypt does the TLS handshake. A client that offers a pre-shared key must have a right one: that it could do with a certificate what it may not with its key would make
// the key worth nothing.
func (c *conn) encrypt(rules *loadedTLS) error {
	nc := c.nc
	if rules.keys != nil {
		hello, err := tlspsk.ReadHello(c.nc)
		if err != nil {
			return err
		}
		if hello.OffersKey() || rules.config == nil {
			encrypted, err := hello.Accept(rules.keys)
			if err != nil {
				return err
			}
			c.encrypted, c.proved.PSK = encrypted, encrypted.Identity()
			return nil
		}
		nc = hello.Unread()
	}
	encrypted := tls.Server(nc, rules.config)
	if err := encrypted.HandshakeContext(c.ctx); err != nil {
		return err
	}
	c.encrypted, c.proved.Certificate = encrypted, verifiedCertificate(encrypted.ConnectionState())
	return nil
}

// client describes who asks.
func (c *conn) client() Client {
	who := c.proved
	who.Addr, who.Encrypted = c.nc.RemoteAddr(), c.encrypted != nil
	return who
}

// verifiedCertificate returns the peer's own certificate if a chain of trust was found for it.
func verifiedCertificate(state tls.ConnectionState) *x509.Certificate {
	if len(state.VerifiedChains) == 0 {
		return nil
	}
	return state.PeerCertificates[0]
}

// What stands before the name of a client where it would not be clear what kind of name it is.
const (
	PSKPrefix  = "psk:"  // the identity of a pre-shared key, always
	x509Prefix = "x509:" // the common name of a certificate, if it begins with one of the two
)

// Identity names a client: the common name of its certificate, or PSKPrefix and the identity of its pre-shared key. No certificate can bear a name that reads as a key's.
// It is "" for a client that proved nothing.
func (c Client) Identity() string {
	switch {
	case c.PSK != "":
		return PSKPrefix + c.PSK
	case c.Certificate == nil:
		return ""
	}
	name := c.Certificate.Subject.CommonName
	if strings.HasPrefix(name, PSKPrefix) || strings.HasPrefix(name, x509Prefix) {
		return x509Prefix + name
	}
	return name
}
