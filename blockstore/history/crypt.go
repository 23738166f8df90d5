package history

import (
	"crypto/cipher"
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// A file of a store that is encrypted has a key of its own, derived from its header, random salt included. What records did, payload and index are sealed each with the place of its frame as the nonce; heads
// and footer are plain, and their checksums are over what is stored. No run appends to a file of another, and an append that failed is never repeated at the same place (file.spent), so no nonce of a frame takes two contents. The index, which an open may have to write
// again, has a random one.

const (
	tagSize = secret.Overhead
	purpose = "hyper-nixos 2026 at rest: history file"

	nonceMeta    = 2 // first byte of a nonce; the last eight are the offset of the frame
	noncePayload = 3
)

// vault seals what a file holds; nil where nothing is encrypted.
type vault struct{ aead cipher.AEAD }

func openVault(keys *keyring.Ring, h *Header, page []byte) (*vault, error) {
	switch {
	case h.KeyID == 0 && keys == nil:
		return nil, nil
	case h.KeyID == 0:
		return nil, damaged("a file that is encrypted, as the store is", 44)
	case keys == nil:
		return nil, keyring.ErrNoKey
	}
	key, err := keys.Log(h.KeyID)
	if err != nil {
		return nil, err
	}
	return &vault{key.Derive(page[:h.bound()], purpose).AEAD()}, nil
}

func nonce(kind byte, off int64) []byte {
	n := make([]byte, 12)
	n[0] = kind
	le.PutUint64(n[4:], uint64(off))
	return n
}

// seal returns plain as it is stored.
func (v *vault) seal(nonce, plain []byte) []byte {
	if v == nil || len(plain) == 0 {
		return plain
	}
	return v.aead.Seal(nil, nonce, plain, nil)
}

var errForged = errors.New("the authentication tag does not fit: the bytes were changed or moved, or are those of another key")

// open returns what seal was given; off is where it is stored, for an error.
func (v *vault) open(nonce []byte, off int64, stored []byte) ([]byte, error) {
	if v == nil || len(stored) == 0 {
		return stored, nil
	}
	plain, err := v.aead.Open(nil, nonce, stored, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForged, &block.CorruptError{Offset: off, Want: "its authentication tag", Got: "another"})
	}
	return plain, nil
}
