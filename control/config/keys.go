package config

import (
	"fmt"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// credentialsDir is where systemd says that a service's credentials lie (systemd.exec(5)).
const credentialsDir = "CREDENTIALS_DIRECTORY"

// checkKeys checks the settings of encryption at rest. It reads no file.
func (s *Store) checkKeys(bad func(path, format string, args ...any)) {
	if s.KeyFile != "" && s.Credential != "" {
		bad("store.key-credential", "store.key-file is set, too; the key is one of both")
	}
	if s.Credential != "" && (s.Credential != filepath.Base(s.Credential) || strings.HasPrefix(s.Credential, ".")) {
		bad("store.key-credential", "%q is a path, and not a name", s.Credential)
	}
	if s.Recipients != "" && s.KeyFile == "" && s.Credential == "" {
		bad("store.recipients", "a store that hvd itself cannot open; set store.key-file or store.key-credential")
	}
	for _, r := range s.RecipientList() {
		if _, err := secret.ParseRecipient(r); err != nil {
			bad("store.recipients", "%.80q is no age recipient, age1… or age1pq1…", r)
		}
	}
}

// RecipientList returns the further recipients of a new store's keys.
func (s *Store) RecipientList() []string { return commas(s.Recipients) }

// Identities reads the key of the store; nil if there is none. A key that others can read is refused: secret.ErrExposed.
func (s *Store) Identities(getenv func(string) string) ([]age.Identity, error) {
	switch {
	case s.Credential != "":
		dir := getenv(credentialsDir)
		if dir == "" {
			return nil, fmt.Errorf("store.key-credential: $%s is not set; start hvd by systemd with LoadCredential=%s, or set store.key-file: %w", credentialsDir, s.Credential, block.ErrInvalid)
		}
		ids, err := secret.ReadIdentities(filepath.Join(dir, s.Credential), secret.Credential)
		return ids, inSetting("store.key-credential", err)
	case s.KeyFile != "":
		ids, err := secret.ReadIdentities(s.KeyFile, secret.OwnerOnly)
		return ids, inSetting("store.key-file", err)
	}
	return nil, nil
}

func inSetting(setting string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", setting, err)
	}
	return nil
}
