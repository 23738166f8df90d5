package tlspsk

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"slices"
)

// offer is what a ClientHello with a pre-shared key offers of what this server has.
type offer struct {
	identities [][]byte
	binders    [][]byte
	beforeBind []byte // the message up to the list of binders, which the binders are made of
	groups     []uint16
	shares     map[uint16][]byte // of the groups that we have
}

// named is a group that we have.
type named struct {
	group uint16
	curve ecdh.Curve
}

// curves are all of them, the best first.
var curves = []named{{groupX25519, ecdh.X25519()}, {groupP256, ecdh.P256()}}

// curve returns the curve of a group, nil for one that we have not.
func curve(group uint16) ecdh.Curve {
	for _, n := range curves {
		if n.group == group {
			return n.curve
		}
	}
	return nil
}

// readOffer checks that h can be answered.
func readOffer(h *clientHello) (*offer, error) {
	if h.version <= 0x0300 || !h.offersTLS13() {
		return nil, failed(alertProtocolVersion, "the client does not speak TLS 1.3")
	}
	keys, ok := h.extension(extensionPreSharedKey)
	if !ok {
		return nil, failed(alertHandshakeFailure, "the client offers no pre-shared key")
	}
	if !bytes.Equal(h.compression, []byte{0}) {
		return nil, failed(alertIllegalParameter, "the client wants compression")
	}
	if _, early := h.extension(extensionEarlyData); early {
		return nil, failed(alertIllegalParameter, "early data, which no key here allows")
	}
	if err := h.checkMode(); err != nil {
		return nil, err
	}
	if !slices.Contains(numbers(h.suites), suiteAES128) {
		return nil, failed(alertHandshakeFailure, "the client has no TLS_AES_128_GCM_SHA256")
	}
	o := &offer{}
	if err := o.readGroups(h); err != nil {
		return nil, err
	}
	if h.extensions[len(h.extensions)-1].kind != extensionPreSharedKey {
		return nil, failed(alertIllegalParameter, "an extension behind the pre-shared keys")
	}
	return o, o.readKeys(h, keys)
}

// offersTLS13 looks for the version where TLS 1.3 has it.
func (h *clientHello) offersTLS13() bool {
	body, _ := h.extension(extensionSupportedVersions)
	c := cursor{b: body}
	versions := c.vector8()
	return c.whole() && len(versions)%2 == 0 && slices.Contains(numbers(versions), version13)
}

// checkMode wants psk_dhe_ke: without a key exchange who learns a key later could read what went before.
func (h *clientHello) checkMode() error {
	body, ok := h.extension(extensionKeyExchangeModes)
	if !ok {
		return failed(alertMissingExtension, "a pre-shared key without psk_key_exchange_modes")
	}
	c := cursor{b: body}
	modes := c.vector8()
	switch {
	case !c.whole() || len(modes) == 0:
		return failed(alertDecodeError, "malformed psk_key_exchange_modes")
	case bytes.IndexByte(modes, modeDHE) < 0:
		return failed(alertHandshakeFailure, "the client does not do psk_dhe_ke")
	}
	return nil
}

// readGroups reads supported_groups and key_share.
func (o *offer) readGroups(h *clientHello) error {
	groups, ok := h.extension(extensionSupportedGroups)
	shares, has := h.extension(extensionKeyShare)
	if !ok || !has {
		return failed(alertMissingExtension, "no supported_groups or no key_share")
	}
	c := cursor{b: groups}
	list := c.vector16()
	if !c.whole() || len(list) == 0 || len(list)%2 != 0 {
		return failed(alertDecodeError, "malformed supported_groups")
	}
	o.groups = numbers(list)
	c = cursor{b: shares}
	entries := cursor{b: c.vector16()}
	o.shares = map[uint16][]byte{}
	for entries.more() {
		group, key := uint16(entries.u16()), entries.vector16()
		if len(key) == 0 {
			entries.bad = true
		}
		if curve(group) == nil {
			continue
		}
		if o.shares[group] != nil || !slices.Contains(o.groups, group) {
			return failed(alertIllegalParameter, "a key share twice, or of a group that the client does not have")
		}
		o.shares[group] = key
	}
	if !c.whole() || entries.bad {
		return failed(alertDecodeError, "malformed key_share")
	}
	return nil
}

// readKeys reads identities and binders.
func (o *offer) readKeys(h *clientHello, body []byte) error {
	c := cursor{b: body}
	identities := cursor{b: c.vector16()}
	binders := c.vector16()
	o.beforeBind = h.raw[:len(h.raw)-len(binders)-2]
	for identities.more() {
		identity := identities.vector16()
		identities.take(4) // obfuscated_ticket_age, which an external key has not
		if len(identity) == 0 {
			identities.bad = true
		}
		o.identities = append(o.identities, identity)
	}
	list := cursor{b: binders}
	for list.more() {
		binder := list.vector8()
		if len(binder) < hashSize {
			list.bad = true
		}
		o.binders = append(o.binders, binder)
	}
	switch {
	case !c.whole() || identities.bad || list.bad || len(o.identities) == 0:
		return failed(alertDecodeError, "malformed pre_shared_key")
	case len(o.identities) != len(o.binders):
		return failed(alertIllegalParameter, "%d identities and %d binders", len(o.identities), len(o.binders))
	}
	return nil
}

// group chooses a group; shared reports whether the client sent a share of it. A group that costs no other round is better than the best one.
func (o *offer) group() (group uint16, shared bool, err error) {
	for _, c := range curves {
		if o.shares[c.group] != nil {
			return c.group, true, nil
		}
	}
	for _, c := range curves {
		if slices.Contains(o.groups, c.group) {
			return c.group, false, nil
		}
	}
	return 0, false, failed(alertHandshakeFailure, "the client has neither X25519 nor P-256")
}

// exchange does the server's half of the key exchange in a group.
func (o *offer) exchange(group uint16) (share, shared []byte, err error) {
	theirs, err := curve(group).NewPublicKey(o.shares[group])
	if err != nil {
		return nil, nil, failed(alertIllegalParameter, "a key share that is not of its group")
	}
	mine, err := curve(group).GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, failed(alertInternalError, "make a key share: %v", err)
	}
	if shared, err = mine.ECDH(theirs); err != nil {
		return nil, nil, failed(alertIllegalParameter, "a key share that gives away the secret")
	}
	return mine.PublicKey().Bytes(), shared, nil
}

// numbers are those of a list of 16 bits each.
func numbers(list []byte) []uint16 {
	all := make([]uint16, 0, len(list)/2)
	for ; len(list) >= 2; list = list[2:] {
		all = append(all, be.Uint16(list))
	}
	return all
}
