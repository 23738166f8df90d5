package seal

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// ErrReadKey means that the keys at hand are a writer's, and the operation needs an owner's.
var ErrReadKey = errors.New("the keys given may write to the repository, not read from it")

// Keys are the keys of a repository, as far as their holder has them.
type Keys struct {
	Repository block.UUID
	Domain     dedup.DomainKey // makes ids
	Index      Secret          // seals what lists ids and places

	recipient *age.HybridRecipient
	identity  *age.HybridIdentity // nil: a writer's

	mu struct {
		sync.Mutex
		sessions map[[32]byte]Secret // by the hash of what wraps them
	}
}

// NewKeys makes the keys of a new repository, an owner's. domain is the key of the stores that will use it, or a new one if it is zero.
func NewKeys(repository block.UUID, domain dedup.DomainKey) (*Keys, error) {
	identity, err := age.GenerateHybridIdentity()
	if err != nil {
		return nil, fmt.Errorf("make the key pair of the repository: %w", err)
	}
	if domain == (dedup.DomainKey{}) {
		if domain, err = dedup.NewDomainKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	return &Keys{Repository: repository, Domain: domain, Index: newSecret(), recipient: identity.Recipient(), identity: identity}, nil
}

// CanRead reports whether these are an owner's keys.
func (k *Keys) CanRead() bool { return k.identity != nil }

// Writer returns the part of the keys that suffices to write.
func (k *Keys) Writer() *Keys {
	return &Keys{Repository: k.Repository, Domain: k.Domain, Index: k.Index, recipient: k.recipient}
}

// Session is the key of what one run of a writer seals.
type Session struct {
	Secret  Secret
	Wrapped []byte // goes into each object; at most MaxWrapped bytes
}

// MaxWrapped bounds the wrapped key of a session, which for one hybrid recipient has about 2 KiB.
const MaxWrapped = 16 << 10

// NewSession makes a session, which readers open by what wraps it.
func (k *Keys) NewSession() (*Session, error) {
	s := &Session{Secret: newSecret()}
	var err error
	if s.Wrapped, err = secret.Wrap(s.Secret.Bytes(), k.recipient); err != nil {
		return nil, fmt.Errorf("key of the session: %w", err)
	}
	return s, nil
}

// maxSessions bounds the sessions that are remembered.
const maxSessions = 4096

// OpenSession unwraps the key of a session: ErrReadKey with a writer's keys, block.ErrCorrupt if it is not for this repository or damaged.
func (k *Keys) OpenSession(wrapped []byte) (Secret, error) {
	if k.identity == nil {
		return Secret{}, ErrReadKey
	}
	name := sha256.Sum256(wrapped)
	k.mu.Lock()
	s, ok := k.mu.sessions[name]
	k.mu.Unlock()
	if ok {
		return s, nil
	}
	key, err := secret.Unwrap(wrapped, secret.Size, k.identity)
	if err == nil {
		s.Secret, err = secret.FromBytes(key)
	}
	if err != nil {
		return Secret{}, &block.CorruptError{Source: "wrapped key", Want: "a key for this repository", Got: err.Error()}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.sessions == nil || len(k.mu.sessions) >= maxSessions {
		k.mu.sessions = make(map[[32]byte]Secret)
	}
	k.mu.sessions[name] = s
	return s, nil
}
