package tlspsktest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// label is HKDF-Expand-Label.
func label(secret []byte, name string, context []byte, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(6+len(name)))
	info = append(info, "tls13 "+name...)
	info = append(info, byte(len(context)))
	out, err := hkdf.Expand(sha256.New, secret, string(append(info, context...)), n)
	if err != nil {
		panic(err)
	}
	return out
}

func extract(salt, input []byte) []byte {
	out, err := hkdf.Extract(sha256.New, input, salt)
	if err != nil {
		panic(err)
	}
	return out
}

func hash(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// proof is a binder or the content of Finished.
func proof(base, transcript []byte) []byte {
	h := hmac.New(sha256.New, label(base, "finished", nil, 32))
	h.Write(transcript)
	return h.Sum(nil)
}

// direction protects one direction.
type direction struct {
	secret, iv []byte
	aead       cipher.AEAD
	number     uint64
}

func newDirection(secret []byte) *direction {
	block, err := aes.NewCipher(label(secret, "key", nil, 16))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &direction{secret: secret, iv: label(secret, "iv", nil, 12), aead: aead}
}

// next is the direction after a KeyUpdate.
func (d *direction) next() *direction { return newDirection(label(d.secret, "traffic upd", nil, 32)) }

func (d *direction) nonce() []byte {
	nonce := make([]byte, 12)
	binary.BigEndian.PutUint64(nonce[4:], d.number)
	for i := range nonce {
		nonce[i] ^= d.iv[i]
	}
	d.number++
	return nonce
}
