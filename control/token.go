package control

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Scope is what a caller may do. Each scope includes those before it.
type Scope uint8

const (
	// ScopeNone may do nothing.
	ScopeNone Scope = iota
	// ScopeRead may look.
	ScopeRead
	// ScopeOperate may change volumes and their data.
	ScopeOperate
	// ScopeAdmin may do everything, tokens included.
	ScopeAdmin
)

var scopeWords = [...]string{"none", "read", "operate", "admin"}

// String is "read", "operate" or "admin".
func (s Scope) String() string {
	if int(s) < len(scopeWords) {
		return scopeWords[s]
	}
	return fmt.Sprintf("scope %d", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Scope) UnmarshalText(text []byte) error {
	i := slices.Index(scopeWords[:], string(text))
	if i <= 0 {
		return fmt.Errorf("scope %q: use read, operate or admin: %w", text, block.ErrInvalid)
	}
	*s = Scope(i)
	return nil
}

// Token is what is known of a token but its secret.
type Token struct {
	Name      string
	Scope     Scope
	CreatedAt time.Time
	ExpiresAt *time.Time // nil: never
	Expired   bool
}

// tokenRecord is a token in tokens.json (docs/format/control.md).
type tokenRecord struct {
	Name      string     `json:"name"`
	Scope     Scope      `json:"scope"`
	SHA256    string     `json:"sha256"` // hexadecimal, of the whole secret
	CreatedAt time.Time  `json:"createdAt"`
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
}

var tokensHeader = stateHeader{Format: "hyper-nixos tokens", Version: 1}

type tokensFile struct {
	stateHeader
	Tokens []tokenRecord `json:"tokens"`
}

const (
	secretPrefix = "hvt_" // lets secret scanners find a leaked one
	secretBytes  = 32     // of randomness
	maxTokens    = 1024   // bounds the work of one check
)

// Tokens are the bearer tokens of the TCP door. The secrets themselves are kept nowhere.
type Tokens struct {
	path   string
	now    func() time.Time
	saving sync.Mutex // orders writers of the file; held while mu is not

	mu struct {
		sync.Mutex
		tokens  []tokenRecord
		changed func()
	}
}

func openTokens(path string, now func() time.Time) (*Tokens, error) {
	t := &Tokens{path: path, now: now}
	var file tokensFile
	if err := readState(path, tokensHeader, &file); err != nil {
		return nil, err
	}
	for _, record := range file.Tokens {
		if sum, err := hex.DecodeString(record.SHA256); err != nil || len(sum) != sha256.Size {
			return nil, &block.CorruptError{Source: path, Want: "a SHA-256 for token " + record.Name, Got: fmt.Sprintf("%q", record.SHA256)}
		}
	}
	t.mu.tokens = file.Tokens
	return t, nil
}

// OnChange sets what is called, without locks, after a token was created or revoked. The TCP door opens and closes with it.
func (t *Tokens) OnChange(changed func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.changed = changed
}

// Create makes a token and returns its secret, which nobody can see again. lifetime 0 means that it does not expire.
func (t *Tokens) Create(name string, scope Scope, lifetime time.Duration) (Token, string, error) {
	if err := CheckName("token", name); err != nil {
		return Token{}, "", fmt.Errorf("create token: %w", err)
	}
	if scope < ScopeRead || scope > ScopeAdmin {
		return Token{}, "", fmt.Errorf("create token %q: %v is not a scope for a token: %w", name, scope, block.ErrInvalid)
	}
	if lifetime < 0 {
		return Token{}, "", fmt.Errorf("create token %q: lifetime %v is negative: %w", name, lifetime, block.ErrInvalid)
	}
	random := make([]byte, secretBytes)
	_, _ = rand.Read(random) // never fails, as crypto/rand says
	secret := secretPrefix + base64.RawURLEncoding.EncodeToString(random)
	sum := sha256.Sum256([]byte(secret))
	record := tokenRecord{Name: name, Scope: scope, SHA256: hex.EncodeToString(sum[:]), CreatedAt: t.now().UTC()}
	if lifetime > 0 {
		expires := record.CreatedAt.Add(lifetime)
		record.ExpiresAt = &expires
	}
	err := t.update(func(tokens []tokenRecord) ([]tokenRecord, error) {
		if slices.ContainsFunc(tokens, func(r tokenRecord) bool { return r.Name == name }) {
			return nil, block.ErrExists
		}
		if len(tokens) >= maxTokens {
			return nil, fmt.Errorf("there are %d already: %w", len(tokens), ErrRefused)
		}
		return append(slices.Clone(tokens), record), nil
	})
	if err != nil {
		return Token{}, "", fmt.Errorf("create token %q: %w", name, err)
	}
	return t.describe(record), secret, nil
}

// Revoke ends a token at once.
func (t *Tokens) Revoke(name string) error {
	err := t.update(func(tokens []tokenRecord) ([]tokenRecord, error) {
		kept := slices.DeleteFunc(slices.Clone(tokens), func(r tokenRecord) bool { return r.Name == name })
		if len(kept) == len(tokens) {
			return nil, block.ErrNotFound
		}
		return kept, nil
	})
	if err != nil {
		return fmt.Errorf("revoke token %q: %w", name, err)
	}
	return nil
}

// List returns the tokens ordered by name, the expired ones too.
func (t *Tokens) List() []Token {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]Token, 0, len(t.mu.tokens))
	for _, record := range t.mu.tokens {
		list = append(list, t.describe(record))
	}
	slices.SortFunc(list, func(a, b Token) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// ErrNoToken means that a secret belongs to no token, or to one that has expired.
var ErrNoToken = errors.New("token is not known or has expired")

// Check returns the token of a secret. Every token is compared, each in constant time.
func (t *Tokens) Check(secret string) (Token, error) {
	sum := sha256.Sum256([]byte(secret))
	got := []byte(hex.EncodeToString(sum[:]))
	t.mu.Lock()
	defer t.mu.Unlock()
	var found *tokenRecord
	for i := range t.mu.tokens {
		if subtle.ConstantTimeCompare(got, []byte(t.mu.tokens[i].SHA256)) == 1 {
			found = &t.mu.tokens[i]
		}
	}
	if found == nil {
		return Token{}, ErrNoToken
	}
	token := t.describe(*found)
	if token.Expired {
		return Token{}, ErrNoToken
	}
	return token, nil
}

// Live reports whether any token can be used, and when that may change by itself: zero when it does not.
func (t *Tokens) Live() (live bool, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, record := range t.mu.tokens {
		if t.describe(record).Expired {
			continue
		}
		live = true
		if at := record.ExpiresAt; at != nil && (next.IsZero() || at.Before(next)) {
			next = *at
		}
	}
	return live, next
}

func (t *Tokens) describe(r tokenRecord) Token {
	return Token{
		Name: r.Name, Scope: r.Scope, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt,
		Expired: r.ExpiresAt != nil && !t.now().Before(*r.ExpiresAt),
	}
}

// update replaces the table, on disk first.
func (t *Tokens) update(edit func([]tokenRecord) ([]tokenRecord, error)) error {
	t.saving.Lock()
	defer t.saving.Unlock()
	t.mu.Lock()
	before, changed := t.mu.tokens, t.mu.changed
	t.mu.Unlock()
	after, err := edit(before)
	if err != nil {
		return err
	}
	if err := writeState(t.path, tokensFile{tokensHeader, after}); err != nil {
		return err
	}
	t.mu.Lock()
	t.mu.tokens = after
	t.mu.Unlock()
	if changed != nil {
		changed()
	}
	return nil
}
