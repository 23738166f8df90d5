package tlspsk

import (
	"crypto/aes"
	"crypto/cipher"
	"slices"
)

// half is the protection of one direction (RFC 8446, 5.2 and 5.3). Without a secret there is none yet.
type half struct {
	aead    cipher.AEAD
	traffic secret
	iv      [12]byte
	records uint64 // under this secret
}

// use goes on with a secret from the next record on.
func (h *half) use(traffic secret) {
	block, err := aes.NewCipher(expandLabel(traffic, "key", nil, 16))
	if err == nil {
		h.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic("tlspsk: AES-128-GCM: " + err.Error()) // a key of 16 bytes is right
	}
	h.traffic, h.records = traffic, 0
	copy(h.iv[:], expandLabel(traffic, "iv", nil, len(h.iv)))
}

// renew goes on with the secret that follows, after KeyUpdate.
func (h *half) renew() { h.use(secret(expandLabel(h.traffic, "traffic upd", nil, hashSize))) }

// nonce is that of the next record. Records are limited long before the number comes round (see Conn.mostRecords).
func (h *half) nonce() []byte {
	nonce := h.iv
	sequence := be.Uint64(nonce[4:]) ^ h.records
	be.PutUint64(nonce[4:], sequence)
	h.records++
	return nonce[:]
}

// appendRecord appends a record with content of one kind, protected if it can be.
func (h *half) appendRecord(dst []byte, kind byte, content []byte) []byte {
	if h.aead == nil {
		dst = append(dst, kind, byte(versionLegacy>>8), byte(versionLegacy&0xff))
		dst = be.AppendUint16(dst, uint16(len(content)))
		return append(dst, content...)
	}
	start := len(dst)
	dst = slices.Grow(dst, recordHeader+len(content)+1+tagSize)
	dst = append(dst, recordData, byte(versionLegacy>>8), byte(versionLegacy&0xff))
	dst = be.AppendUint16(dst, uint16(len(content)+1+tagSize))
	dst = append(dst, content...)
	dst = append(dst, kind)
	header, inner := dst[start:start+recordHeader], dst[start+recordHeader:]
	return dst[:start+recordHeader+len(h.aead.Seal(inner[:0], h.nonce(), inner, header))]
}

// open takes the protection off a record's body, into dst if that is long enough, else in place.
func (h *half) open(dst, header, body []byte) (kind byte, content []byte, err error) {
	if len(dst) < len(body)-tagSize {
		dst = body
	}
	inner, err := h.aead.Open(dst[:0:len(dst)], h.nonce(), body, header)
	if err != nil {
		return 0, nil, failed(alertBadRecordMAC, "a record was changed, repeated or left out")
	}
	if len(inner) > maxPlain+1 {
		return 0, nil, failed(alertRecordOverflow, "a record with %d bytes", len(inner)-1)
	}
	end := len(inner) - 1
	for end >= 0 && inner[end] == 0 { // padding
		end--
	}
	if end < 0 {
		return 0, nil, failed(alertUnexpectedMessage, "a record of padding alone")
	}
	if inner[end] == recordChangeCipherSpec {
		return 0, nil, failed(alertUnexpectedMessage, "a protected ChangeCipherSpec")
	}
	return inner[end], inner[:end], nil
}
