package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// Secret is a key of a repository.
type Secret struct{ secret.Secret }

func newSecret() Secret { return Secret{secret.New()} }

// Salt makes the key of one object. It is random and stands in the object in plain text.
type Salt [32]byte

// NewSalt returns a random salt.
func NewSalt() (s Salt) {
	rand.Read(s[:])
	return s
}

// Purposes keep the keys of different kinds of data apart that come from one secret. They are part of the repository format.
const (
	PurposeFrames    = "hyper-nixos repository 1 frames"
	PurposeDirectory = "hyper-nixos repository 1 directory"
	PurposeIndex     = "hyper-nixos repository 1 index"
	PurposeManifest  = "hyper-nixos repository 1 manifest"
	PurposeMark      = "hyper-nixos repository 1 mark"
)

// Overhead is how many bytes a sealed piece is longer than what it holds.
const Overhead = secret.Overhead

// Box seals and opens the pieces of one object. Its methods may be called at once.
type Box struct {
	aead  cipher.AEAD
	bound [16]byte
}

// Box returns the box of an object: for that purpose, with the object's salt, in that repository.
func (s Secret) Box(purpose string, salt Salt, repository block.UUID) *Box {
	return &Box{aead: s.Derive(salt[:], purpose).AEAD(), bound: repository}
}

func (b *Box) nonce(number uint64) (nonce [12]byte) {
	binary.LittleEndian.PutUint64(nonce[4:], number)
	return nonce
}

// Seal appends piece number number of the object to dst, sealed. No number may be used twice with one box's salt.
func (b *Box) Seal(dst, piece []byte, number uint64) []byte {
	nonce := b.nonce(number)
	return b.aead.Seal(dst, nonce[:], piece, b.bound[:])
}

// Open appends the content of a sealed piece to dst. Anything but what Seal made, under that number, is block.ErrCorrupt.
func (b *Box) Open(dst, sealed []byte, number uint64) ([]byte, error) {
	nonce := b.nonce(number)
	out, err := b.aead.Open(dst, nonce[:], sealed, b.bound[:])
	if err != nil {
		return nil, &block.CorruptError{Source: "sealed piece", Offset: int64(number), Want: "its tag", Got: "another, or the wrong key"}
	}
	return out, nil
}
