package seal

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// Purposes keep what owners say of copies, of states of volumes, and of locks, apart from whatever else they may say. They are part of the repository format.
const (
	PurposeOrigin = "hyper-nixos repository 1 origin"
	PurposeFrozen = "hyper-nixos repository 1 frozen"
	PurposeLock   = "hyper-nixos repository 1 locked"
)

// Vouch returns what only owners can make of the parts, which are taken as one message: HMAC-SHA256 under a key that is HKDF-SHA256 of the repository's age identity, as text, with the
// repository's id as salt, for a purpose. ErrReadKey with a writer's keys.
func (k *Keys) Vouch(purpose string, parts ...[]byte) ([]byte, error) {
	if k.identity == nil {
		return nil, ErrReadKey
	}
	key, err := hkdf.Key(sha256.New, []byte(k.identity.String()), k.Repository[:], purpose, secret.Size)
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", purpose, err)
	}
	s, err := secret.FromBytes(key)
	if err != nil {
		return nil, err
	}
	sum := s.MAC(parts...)
	return sum[:], nil
}
