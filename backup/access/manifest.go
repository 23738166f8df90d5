package access

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// ManifestHead is how many bytes of a manifest Manifest.Check looks at.
const ManifestHead = 28

// manifestStart is what a manifest begins with: magic and version (docs/format/repository.md). Its repository's id is at 12.
const manifestStart = "HVMANI1\x00\x01\x00"

// Manifest is what can be seen of a manifest without keys.
type Manifest struct {
	Key  string
	Head []byte // its first bytes, ManifestHead or all
	Sum  []byte // BLAKE3 of all of it
}

// IsManifest reports whether a key is that of a manifest.
func IsManifest(key string) bool { return strings.HasPrefix(key, "manifests/") }

// Check returns why an object can be no manifest that a prune may pass over if it cannot be read: one of this format and of that repository, under the name of what it holds. A zero id is any.
func (m Manifest) Check(repository block.UUID) error {
	switch {
	case len(m.Head) < ManifestHead || !strings.HasPrefix(string(m.Head), manifestStart):
		return fmt.Errorf("object %s is no manifest of a version that this host knows: %w", m.Key, block.ErrInvalid)
	case repository != (block.UUID{}) && block.UUID(m.Head[12:28]) != repository:
		return fmt.Errorf("object %s is a manifest of another repository: %w", m.Key, block.ErrInvalid)
	case !m.Named():
		return fmt.Errorf("object %s is no manifest of that name, which ends with a hash: %w", m.Key, block.ErrInvalid)
	}
	return nil
}

// Named reports whether the name ends with the first eight hexadecimal digits of the hash: so nothing of it was changed since it got that name.
func (m Manifest) Named() bool {
	return len(m.Sum) >= 4 && strings.HasSuffix(m.Key, "-"+hex.EncodeToString(m.Sum[:4]))
}
