package control

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.json")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	tokens, err := openTokens(path, clock)
	if err != nil {
		t.Fatal(err)
	}
	changes := 0
	tokens.OnChange(func() { changes++ })
	if live, _ := tokens.Live(); live {
		t.Error("a token is live before there is one")
	}
	_, secret, err := tokens.Create("ci", ScopeOperate, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if len(secret) < 43 || !strings.HasPrefix(secret, "hvt_") {
		t.Errorf("secret %q", secret)
	}
	if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), secret) {
		t.Errorf("the secret is in the file, or %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", info.Mode(), err)
	}
	if _, _, err := tokens.Create("ci", ScopeRead, 0); !errors.Is(err, block.ErrExists) {
		t.Errorf("the same name: %v", err)
	}
	tokens, err = openTokens(path, clock) // as after a restart
	if err != nil {
		t.Fatal(err)
	}
	if token, err := tokens.Check(secret); err != nil || token.Scope != ScopeOperate || token.Name != "ci" {
		t.Errorf("check: %+v, %v", token, err)
	}
	for _, wrong := range []string{"", "hvt_", secret[:len(secret)-1], secret + "x", strings.ToUpper(secret)} {
		if _, err := tokens.Check(wrong); !errors.Is(err, ErrNoToken) {
			t.Errorf("check of %q: %v", wrong, err)
		}
	}
	if live, next := tokens.Live(); !live || !next.Equal(now.Add(24*time.Hour)) {
		t.Errorf("live %v, next %v", live, next)
	}
	now = now.Add(24 * time.Hour)
	if _, err := tokens.Check(secret); !errors.Is(err, ErrNoToken) {
		t.Errorf("expired: %v", err)
	}
	if live, _ := tokens.Live(); live {
		t.Error("an expired token is live")
	}
	if err := tokens.Revoke("ci"); err != nil {
		t.Error(err)
	}
	if err := tokens.Revoke("ci"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("revoke again: %v", err)
	}
	if changes != 1 {
		t.Errorf("%d changes were told of by the first table, want 1", changes)
	}
}

func TestTokensThatMakeNoSense(t *testing.T) {
	tokens, err := openTokens(filepath.Join(t.TempDir(), "tokens.json"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"name":     func() error { _, _, err := tokens.Create("a/b", ScopeRead, 0); return err }(),
		"scope":    func() error { _, _, err := tokens.Create("a", ScopeNone, 0); return err }(),
		"lifetime": func() error { _, _, err := tokens.Create("a", ScopeRead, -1); return err }(),
	} {
		if !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Golden bytes of tokens.json: versions to come must read this.
func TestTokensFileStaysReadable(t *testing.T) {
	tokens, err := openTokens("testdata/tokens-1.json", func() time.Time { return time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC) })
	if err != nil {
		t.Fatal(err)
	}
	token, err := tokens.Check("data")
	if err != nil || token.Name != "ci" || token.Scope != ScopeOperate || token.Expired {
		t.Errorf("got %+v, %v", token, err)
	}
}
