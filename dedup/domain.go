package dedup

import (
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"

	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// DomainKeySize is the length of a domain key in bytes.
const DomainKeySize = 32

// domainContext separates the id of a key from every other use of BLAKE3 with it. It is part of the disk format.
const domainContext = "hyper-nixos 2026 deduplication domain id"

// DomainKey is the secret that keys chunk identities. Stores that share it (because one joined the other's domain, or restored its backup)
// find each other's chunks; nobody else can tell from an id whether a store holds some known bytes. No verb of package fmt prints it, nor do encoding/json
// and log/slog. The zero value is no key.
type DomainKey struct{ key [DomainKeySize]byte }

// DomainID names a domain without giving its key away: 16 bytes derived from the key. It is stored wherever a file has to say to which
// domain its ids belong.
type DomainID [16]byte

// String returns the id in hexadecimal.
func (id DomainID) String() string { return hex.EncodeToString(id[:]) }

// NewDomainKey makes a key from 32 bytes of random, which must be a cryptographic source such as crypto/rand.Reader.
func NewDomainKey(random io.Reader) (DomainKey, error) {
	var k DomainKey
	if _, err := io.ReadFull(random, k.key[:]); err != nil {
		return DomainKey{}, fmt.Errorf("generate domain key: %w", err)
	}
	return k, nil
}

// DomainKeyFromBytes takes over a key that was kept elsewhere. A wrong length, or a key of zeroes, is block.ErrInvalid.
func DomainKeyFromBytes(b []byte) (DomainKey, error) {
	var k DomainKey
	if len(b) != DomainKeySize {
		return k, fmt.Errorf("domain key of %d B instead of %d B: %w", len(b), DomainKeySize, block.ErrInvalid)
	}
	copy(k.key[:], b)
	if k == (DomainKey{}) {
		return k, fmt.Errorf("domain key is all zeroes: %w", block.ErrInvalid)
	}
	return k, nil
}

// Bytes returns a copy of the secret, for the one place that keeps it.
func (k DomainKey) Bytes() []byte { return append([]byte(nil), k.key[:]...) }

// ID returns the public name of the key's domain.
func (k DomainKey) ID() DomainID {
	var id DomainID
	blake3.DeriveKey(domainContext, k.key[:], id[:])
	return id
}

// String names the domain; it never shows the key.
func (k DomainKey) String() string { return "domain " + k.ID().String() }

// Format prints String for every verb, since %x or %+v would otherwise reach the bytes.
func (k DomainKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// MarshalText returns String, so that a key that strays into JSON or YAML stays secret.
func (k DomainKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// LogValue returns String.
func (k DomainKey) LogValue() slog.Value { return slog.StringValue(k.String()) }
