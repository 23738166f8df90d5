package seal

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

var testRepository = block.UUID{1, 2, 3}

func newTestKeys(t *testing.T) *Keys {
	t.Helper()
	k, err := NewKeys(testRepository, dedup.DomainKey{})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func reopen(t *testing.T, s *Slot, c Credentials) (*Keys, error) {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if s, err = DecodeSlot(b); err != nil {
		t.Fatal(err)
	}
	return s.Open(c, testRepository)
}

func TestSlots(t *testing.T) {
	owner := newTestKeys(t)
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("correct horse")
	for name, keys := range map[string]*Keys{RoleOwner: owner, RoleWriter: owner.Writer()} {
		byPassphrase, err := keys.PassphraseSlot(secret, "laptop")
		if err != nil {
			t.Fatal(err)
		}
		byIdentity, err := keys.RecipientSlot([]age.Recipient{hybrid.Recipient()}, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			slot *Slot
			with Credentials
			want error
		}{
			{byPassphrase, Credentials{Passphrase: secret}, nil},
			{byPassphrase, Credentials{Passphrase: []byte("wrong")}, ErrWrongKey},
			{byPassphrase, Credentials{Identities: []age.Identity{hybrid}}, ErrWrongKey},
			{byIdentity, Credentials{Identities: []age.Identity{other, hybrid}}, nil},
			{byIdentity, Credentials{Identities: []age.Identity{other}}, ErrWrongKey},
			{byIdentity, Credentials{Passphrase: secret}, ErrWrongKey},
		} {
			got, err := reopen(t, c.slot, c.with)
			if !errors.Is(err, c.want) {
				t.Errorf("%s slot: got %v, want %v", name, err, c.want)
			}
			if err == nil && (got.Domain != owner.Domain || got.Index != owner.Index || got.CanRead() != (name == RoleOwner)) {
				t.Errorf("%s slot gives other keys than it was made with", name)
			}
		}
		if _, err := byIdentity.Open(Credentials{Identities: []age.Identity{hybrid}}, block.UUID{9}); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("a slot of another repository: got %v", err)
		}
	}
}

// A slot says in plain text whose it is; changing that must not go unnoticed.
func TestTamperedSlots(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newTestKeys(t).Writer().RecipientSlot([]age.Recipient{id.Recipient()}, "backup of web1")
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(s *Slot){
		"role":    func(s *Slot) { s.Role = RoleOwner },
		"label":   func(s *Slot) { s.Label = "admin" },
		"created": func(s *Slot) { s.Created = s.Created.AddDate(1, 0, 0) },
	} {
		changed := *s
		change(&changed)
		if _, err := reopen(t, &changed, Credentials{Identities: []age.Identity{id}}); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s changed: got %v, want %v", what, err, block.ErrCorrupt)
		}
	}
	huge := *s
	huge.Argon2id = &argon{Time: 1, MemoryKiB: 1 << 30, Threads: 1, Salt: make([]byte, 16), Nonce: make([]byte, 24)}
	if _, err := reopen(t, &huge, Credentials{Passphrase: []byte("x")}); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a slot that asks for 1 TiB of memory: got %v", err)
	}
	for text, want := range map[string]error{
		``: block.ErrCorrupt, `{"version":2}`: block.ErrVersion, `{"version":1,"role":"owner"}`: block.ErrCorrupt, `{"version":1,"role":"god","sealed":"AAAA"}`: block.ErrCorrupt,
		strings.Repeat(" ", MaxSlot+1): block.ErrCorrupt,
	} {
		if _, err := DecodeSlot([]byte(text)); !errors.Is(err, want) {
			t.Errorf("slot %.40q: got %v, want %v", text, err, want)
		}
	}
}

func TestSessions(t *testing.T) {
	owner := newTestKeys(t)
	session, err := owner.Writer().NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if len(session.Wrapped) > MaxWrapped {
		t.Errorf("a wrapped key has %d B", len(session.Wrapped))
	}
	for range 2 { // the second time it is remembered
		if got, err := owner.OpenSession(session.Wrapped); err != nil || got != session.Secret {
			t.Errorf("the session's key is not what it was: %v", err)
		}
	}
	if _, err := owner.Writer().OpenSession(session.Wrapped); !errors.Is(err, ErrReadKey) {
		t.Errorf("a writer reads: %v", err)
	}
	if _, err := newTestKeys(t).OpenSession(session.Wrapped); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("keys of another repository: %v", err)
	}
	for i := 0; i < len(session.Wrapped); i += 61 {
		bad := bytes.Clone(session.Wrapped)
		bad[i] ^= 4
		if got, err := owner.OpenSession(bad); err == nil && got == session.Secret {
			continue // age's text has bytes that do not matter to it
		} else if !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
}

func TestBox(t *testing.T) {
	k, salt := newTestKeys(t), NewSalt()
	box := k.Index.Box(PurposeIndex, salt, testRepository)
	piece := []byte("some ids")
	sealed := box.Seal(nil, piece, 7)
	if len(sealed) != len(piece)+Overhead {
		t.Errorf("%d B sealed for %d B", len(sealed), len(piece))
	}
	if got, err := box.Open(nil, sealed, 7); err != nil || !bytes.Equal(got, piece) {
		t.Errorf("got %q, %v", got, err)
	}
	for what, other := range map[string]*Box{
		"another purpose":    k.Index.Box(PurposeDirectory, salt, testRepository),
		"another salt":       k.Index.Box(PurposeIndex, NewSalt(), testRepository),
		"another repository": k.Index.Box(PurposeIndex, salt, block.UUID{9}),
		"another key":        newTestKeys(t).Index.Box(PurposeIndex, salt, testRepository),
	} {
		if _, err := other.Open(nil, sealed, 7); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: got %v, want %v", what, err, block.ErrCorrupt)
		}
	}
	if _, err := box.Open(nil, sealed, 8); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("another number: got %v", err)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	k := newTestKeys(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%d"} {
		text := fmt.Sprintf(verb, k.Index)
		if text != "secret" {
			t.Errorf("%s prints %q", verb, text)
		}
	}
	if _, err := k.Index.MarshalText(); err == nil {
		t.Error("a secret is marshalled")
	}
}

// Only owners can vouch, for what they said, for that purpose, in that repository; and what they said stays true.
func TestVouch(t *testing.T) {
	identity, err := age.ParseHybridIdentity("AGE-SECRET-KEY-PQ-16K3GAA7W856TC28EXP3XWFUSEKWJXNRSEE3K46NXP0N0FAZFDR4QRYYHZM")
	if err != nil {
		t.Fatal(err)
	}
	k := &Keys{Repository: testRepository, identity: identity}
	proof, err := k.Vouch(PurposeOrigin, []byte("this"), []byte("that"))
	if want := "f91827a6845b275da8bb129860e857df9149012e6873d53092904a14929cf693"; err != nil || fmt.Sprintf("%x", proof) != want {
		t.Errorf("the proof is %x, %v; want %s, which other programs make of it", proof, err, want)
	}
	if _, err := newTestKeys(t).Writer().Vouch(PurposeOrigin, []byte("this")); !errors.Is(err, ErrReadKey) {
		t.Errorf("a writer vouches: %v", err)
	}
	for _, other := range []struct {
		what, purpose, that string
		keys                *Keys
	}{
		{"something else", PurposeOrigin, "those", k},
		{"another purpose", "other", "that", k},
		{"another repository", PurposeOrigin, "that", &Keys{Repository: block.UUID{3}, identity: identity}},
		{"another owner", PurposeOrigin, "that", newTestKeys(t)},
	} {
		if got, err := other.keys.Vouch(other.purpose, []byte("this"), []byte(other.that)); err != nil || bytes.Equal(got, proof) {
			t.Errorf("%s has the same proof, %v", other.what, err)
		}
	}
}
