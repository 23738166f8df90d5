package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Size is the length of a secret in bytes.
const Size = 32

// Overhead is how many bytes longer what an AEAD has sealed is: its tag.
const Overhead = 16

// Secret is a key of 32 random bytes. No verb of package fmt prints it.
type Secret struct{ b [Size]byte }

// New returns a random secret.
func New() (s Secret) {
	rand.Read(s.b[:])
	return s
}

// FromBytes takes over a secret that was kept sealed. Another length than Size is block.ErrInvalid.
func FromBytes(b []byte) (s Secret, err error) {
	if len(b) != Size {
		return s, fmt.Errorf("a secret of %d B instead of %d B: %w", len(b), Size, block.ErrInvalid)
	}
	copy(s.b[:], b)
	return s, nil
}

// Bytes returns a copy, for who seals it.
func (s Secret) Bytes() []byte { return append([]byte(nil), s.b[:]...) }

// Format prints a word instead of the bytes.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "secret") }

// MarshalText refuses: a secret leaves a program sealed only.
func (Secret) MarshalText() ([]byte, error) {
	return nil, fmt.Errorf("a secret in plain text: %w", block.ErrInvalid)
}

// Derive returns another secret: HKDF-SHA256 of this one with a salt, for a purpose. Who knows it knows neither this one nor those of other purposes.
func (s Secret) Derive(salt []byte, purpose string) (d Secret) {
	key, err := hkdf.Key(sha256.New, s.b[:], salt, purpose, Size)
	if err != nil {
		panic(err) // the lengths are right
	}
	copy(d.b[:], key)
	return d
}

// AEAD returns AES-256-GCM under the secret. Its methods may be called at once. A nonce must never be used twice.
func (s Secret) AEAD() cipher.AEAD {
	c, err := aes.NewCipher(s.b[:])
	if err != nil {
		panic(err) // the length is right
	}
	aead, err := cipher.NewGCM(c)
	if err != nil {
		panic(err)
	}
	return aead
}

// MAC returns HMAC-SHA256 (RFC 2104) of the parts, which are taken as one message.
func (s Secret) MAC(parts ...[]byte) (sum [Size]byte) {
	h := hmac.New(sha256.New, s.b[:])
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(sum[:0])
	return sum
}
