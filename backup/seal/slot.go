package seal

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// ErrWrongKey means that none of what was given opens the slot.
var ErrWrongKey = errors.New("wrong passphrase or key")

// Roles of a slot's holder. The words are part of the repository format.
const (
	RoleOwner  = "owner"
	RoleWriter = "writer"
)

// slotVersion is the version of the format of key slots.
const slotVersion = 1

// MaxSlot bounds the bytes of an encoded slot.
const MaxSlot = 64 << 10

// Slot holds keys, sealed. What it says of itself in plain text is bound to what is sealed.
type Slot struct {
	Version    int       `json:"version"`
	Repository string    `json:"repository"`
	Role       string    `json:"role"`
	Label      string    `json:"label,omitempty"`
	Created    time.Time `json:"created"`
	Argon2id   *argon    `json:"argon2id,omitempty"` // of a passphrase; without it the slot is for age recipients
	Sealed     []byte    `json:"sealed"`
}

// argon is the work that a passphrase costs.
type argon struct {
	Time      uint32 `json:"time"`
	MemoryKiB uint32 `json:"memoryKiB"`
	Threads   uint8  `json:"threads"`
	Salt      []byte `json:"salt"`
	Nonce     []byte `json:"nonce"`
}

// Bounds of what a slot may ask of who opens it: it comes from a place that anybody may have written to.
const (
	maxArgonTime      = 64
	maxArgonMemoryKiB = 2 << 20
	minArgonMemoryKiB = 8 << 10
	maxArgonThreads   = 64
	maxLabel          = 200
)

// sealedKeys is what is sealed.
type sealedKeys struct {
	Bound     string `json:"bound"` // what the slot says of itself
	DomainKey []byte `json:"domainKey"`
	IndexKey  []byte `json:"indexKey"`
	Recipient string `json:"recipient"`
	Identity  string `json:"identity,omitempty"`
}

// bound is what the plain text of a slot says that matters.
func (s *Slot) bound() string {
	return fmt.Sprintf("hyper-nixos key slot %d %s %s %s %q", s.Version, s.Repository, s.Role, s.Created.UTC().Format(time.RFC3339Nano), s.Label)
}

func (k *Keys) newSlot(label string) (*Slot, []byte, error) {
	s := &Slot{Version: slotVersion, Repository: k.Repository.String(), Role: RoleWriter, Label: label, Created: time.Now().UTC()}
	if len(label) > maxLabel {
		return nil, nil, fmt.Errorf("label of %d B, at most %d B: %w", len(label), maxLabel, block.ErrInvalid)
	}
	in := sealedKeys{DomainKey: k.Domain.Bytes(), IndexKey: k.Index.Bytes(), Recipient: k.recipient.String()}
	if k.identity != nil {
		s.Role, in.Identity = RoleOwner, k.identity.String()
	}
	in.Bound = s.bound()
	plain, err := json.Marshal(in)
	return s, plain, err
}

// PassphraseSlot seals the keys under a passphrase, which must not be empty. It takes about a tenth of a second and 64 MiB.
func (k *Keys) PassphraseSlot(passphrase []byte, label string) (*Slot, error) {
	if len(passphrase) == 0 {
		return nil, fmt.Errorf("an empty passphrase: %w", block.ErrInvalid)
	}
	s, plain, err := k.newSlot(label)
	if err != nil {
		return nil, err
	}
	// The second recommendation of RFC 9106, section 4: the first one's 2 GiB are more than a host that makes backups may have to spare.
	s.Argon2id = &argon{Time: 3, MemoryKiB: 64 << 10, Threads: 4, Salt: make([]byte, 16), Nonce: make([]byte, chacha20poly1305.NonceSizeX)}
	rand.Read(s.Argon2id.Salt)
	rand.Read(s.Argon2id.Nonce)
	aead, err := s.Argon2id.aead(passphrase)
	if err != nil {
		return nil, err
	}
	s.Sealed = aead.Seal(nil, s.Argon2id.Nonce, plain, nil)
	return s, nil
}

// RecipientSlot seals the keys for age recipients, each of which opens it alone.
func (k *Keys) RecipientSlot(recipients []age.Recipient, label string) (*Slot, error) {
	s, plain, err := k.newSlot(label)
	if err != nil {
		return nil, err
	}
	if s.Sealed, err = secret.Wrap(plain, recipients...); err != nil {
		return nil, fmt.Errorf("key slot: %w", err)
	}
	return s, nil
}

type sealer interface {
	Seal(dst, nonce, plaintext, additionalData []byte) []byte
	Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error)
}

func (a *argon) aead(passphrase []byte) (sealer, error) {
	switch {
	case a.Time < 1 || a.Time > maxArgonTime, a.MemoryKiB < minArgonMemoryKiB || a.MemoryKiB > maxArgonMemoryKiB, a.Threads < 1 || a.Threads > maxArgonThreads,
		len(a.Salt) < 8 || len(a.Salt) > 64, len(a.Nonce) != chacha20poly1305.NonceSizeX:
		return nil, &block.CorruptError{Source: "key slot", Want: "argon2id within its bounds", Got: fmt.Sprintf("%d passes over %d KiB, %d threads", a.Time, a.MemoryKiB, a.Threads)}
	}
	return chacha20poly1305.NewX(argon2.IDKey(passphrase, a.Salt, a.Time, a.MemoryKiB, a.Threads, chacha20poly1305.KeySize))
}

// Credentials are what a user has to open a slot with.
type Credentials struct {
	Passphrase []byte
	Identities []age.Identity
}

// Encode returns the slot as the repository keeps it.
func (s *Slot) Encode() ([]byte, error) { return json.MarshalIndent(s, "", "  ") }

// DecodeSlot reads a slot, which may come from anybody. A newer format is block.ErrVersion, nonsense block.ErrCorrupt.
func DecodeSlot(b []byte) (*Slot, error) {
	if len(b) > MaxSlot {
		return nil, &block.CorruptError{Source: "key slot", Want: fmt.Sprintf("at most %d B", MaxSlot), Got: fmt.Sprint(len(b))}
	}
	s := new(Slot)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, &block.CorruptError{Source: "key slot", Want: "JSON", Got: err.Error()}
	}
	if s.Version > slotVersion {
		return nil, fmt.Errorf("key slot of version %d: %w", s.Version, block.ErrVersion)
	}
	if s.Version < 1 || s.Role != RoleOwner && s.Role != RoleWriter || len(s.Label) > maxLabel || len(s.Sealed) == 0 {
		return nil, &block.CorruptError{Source: "key slot", Want: "a version, a role, a label and keys", Got: fmt.Sprintf("version %d, role %q", s.Version, s.Role)}
	}
	return s, nil
}

// Open returns the keys of the slot, which must be one of that repository. What was given being of no use is ErrWrongKey; a slot that was tampered with is block.ErrCorrupt.
func (s *Slot) Open(c Credentials, repository block.UUID) (*Keys, error) {
	if s.Repository != repository.String() {
		return nil, &block.CorruptError{Source: "key slot", Want: "repository " + repository.String(), Got: s.Repository}
	}
	plain, err := s.unseal(c)
	if err != nil {
		return nil, err
	}
	var in sealedKeys
	if err := json.Unmarshal(plain, &in); err != nil {
		return nil, &block.CorruptError{Source: "keys of a slot", Want: "JSON", Got: "none"} // the error would show a part of the keys
	}
	if in.Bound != s.bound() || len(in.IndexKey) != 32 || (s.Role == RoleOwner) != (in.Identity != "") {
		return nil, &block.CorruptError{Source: "key slot", Want: "what its keys were sealed with", Got: s.bound()}
	}
	k := &Keys{Repository: repository}
	if k.Index.Secret, err = secret.FromBytes(in.IndexKey); err != nil {
		return nil, err
	}
	if k.Domain, err = dedup.DomainKeyFromBytes(in.DomainKey); err != nil {
		return nil, err
	}
	if k.recipient, err = age.ParseHybridRecipient(in.Recipient); err == nil && in.Identity != "" {
		k.identity, err = age.ParseHybridIdentity(in.Identity)
	}
	if err != nil {
		return nil, &block.CorruptError{Source: "keys of a slot", Want: "a hybrid age key", Got: "none"}
	}
	return k, nil
}

func (s *Slot) unseal(c Credentials) ([]byte, error) {
	if s.Argon2id != nil {
		if len(c.Passphrase) == 0 {
			return nil, ErrWrongKey
		}
		aead, err := s.Argon2id.aead(c.Passphrase)
		if err != nil {
			return nil, err
		}
		plain, err := aead.Open(nil, s.Argon2id.Nonce, s.Sealed, nil)
		if err != nil {
			return nil, ErrWrongKey
		}
		return plain, nil
	}
	plain, err := secret.Unwrap(s.Sealed, MaxSlot, c.Identities...)
	if errors.Is(err, secret.ErrWrongKey) {
		return nil, ErrWrongKey
	}
	return plain, err
}
