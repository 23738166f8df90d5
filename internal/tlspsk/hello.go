package tlspsk

import "bytes"

// clientHello is a ClientHello of any version of TLS, in its parts.
type clientHello struct {
	raw         []byte // the message with its header, which the parts lie in
	version     uint16 // legacy_version
	random      []byte
	session     []byte // legacy_session_id
	suites      []byte
	compression []byte
	extensions  []extension
}

type extension struct {
	kind uint16
	body []byte
}

// maxExtensions is how many a ClientHello may have; real ones have about 20.
const maxExtensions = 128

// parseHello takes a ClientHello apart. What is in its extensions it does not look at.
func parseHello(raw []byte) (*clientHello, error) {
	c := cursor{b: raw[messageHeader:]}
	h := &clientHello{raw: raw, version: uint16(c.u16()), random: c.take(32), session: c.vector8(), suites: c.vector16(), compression: c.vector8()}
	if c.more() { // TLS 1.2 may come without
		list := cursor{b: c.vector16()}
		for list.more() {
			h.extensions = append(h.extensions, extension{uint16(list.u16()), list.vector16()})
			if len(h.extensions) > maxExtensions {
				return nil, failed(alertDecodeError, "more than %d extensions", maxExtensions)
			}
		}
		c.bad = c.bad || list.bad
	}
	if !c.whole() || len(h.session) > 32 || len(h.suites) == 0 || len(h.suites)%2 != 0 || len(h.compression) == 0 {
		return nil, failed(alertDecodeError, "malformed ClientHello")
	}
	seen := map[uint16]bool{}
	for _, e := range h.extensions {
		if seen[e.kind] {
			return nil, failed(alertIllegalParameter, "extension %d is there twice", e.kind)
		}
		seen[e.kind] = true
	}
	return h, nil
}

// extension returns the content of an extension.
func (h *clientHello) extension(kind uint16) (body []byte, ok bool) {
	for _, e := range h.extensions {
		if e.kind == kind {
			return e.body, true
		}
	}
	return nil, false
}

// repeats reports whether h is what may follow a HelloRetryRequest after first: the same but for the extensions that have to do with it (RFC 8446, 4.1.2).
func (h *clientHello) repeats(first *clientHello) bool {
	if h.version != first.version || !bytes.Equal(h.random, first.random) || !bytes.Equal(h.session, first.session) ||
		!bytes.Equal(h.suites, first.suites) || !bytes.Equal(h.compression, first.compression) {
		return false
	}
	a, b := h.lasting(), first.lasting()
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].kind != b[i].kind || !bytes.Equal(a[i].body, b[i].body) {
			return false
		}
	}
	return true
}

// lasting are the extensions that a second ClientHello must repeat.
func (h *clientHello) lasting() []extension {
	var all []extension
	for _, e := range h.extensions {
		switch e.kind {
		case extensionKeyShare, extensionPreSharedKey, extensionPadding, extensionCookie, extensionEarlyData:
		default:
			all = append(all, e)
		}
	}
	return all
}
