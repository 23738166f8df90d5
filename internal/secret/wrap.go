package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// ErrWrongKey means that none of the identities unwraps what was wrapped.
var ErrWrongKey = errors.New("wrong key")

// Wrap seals plain for age recipients, each of which opens it alone. Post-quantum recipients do not go together with others: age refuses that, as what both can open is as strong as the weaker one.
func Wrap(plain []byte, recipients ...age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("wrap for age recipients: %w", err)
	}
	return out.Bytes(), nil
}

// Unwrap returns what was wrapped, at most most bytes: ErrWrongKey if no identity is one of the recipients' or there is none, block.ErrCorrupt if it was damaged behind its header.
func Unwrap(wrapped []byte, most int64, identities ...age.Identity) ([]byte, error) {
	if len(identities) == 0 {
		return nil, ErrWrongKey
	}
	r, err := age.Decrypt(bytes.NewReader(wrapped), identities...)
	if err != nil {
		return nil, ErrWrongKey
	}
	plain, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil || int64(len(plain)) > most {
		return nil, &block.CorruptError{Source: "wrapped key", Want: "what age sealed", Got: "other bytes"}
	}
	return plain, nil
}

// maxIdentityFile bounds a file of identities, in bytes.
const maxIdentityFile = 64 << 10

// What nobody but the owner may be allowed of a file of identities: anything; and of one of systemd's credentials, which lie where nobody else comes and whose group bits are the mask of an ACL.
const (
	OwnerOnly  os.FileMode = 0o077
	Credential os.FileMode = 0o007
)

// ReadIdentities reads age identities from a file, as age-keygen writes it. A file with one of the mode bits in exposed is refused: ErrExposed.
// A file without an identity, or with anything else, is block.ErrInvalid; the error shows nothing of it.
func ReadIdentities(path string, exposed os.FileMode) ([]age.Identity, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // the open of a FIFO would wait for who writes to it
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	if mode := info.Mode(); !mode.IsRegular() {
		return nil, fmt.Errorf("key file %s is no regular file (%v): what a pipe or device gives cannot be read again at the next start; write the key into a file, or use a systemd credential: %w", path, mode, block.ErrInvalid)
	}
	if mode := info.Mode(); mode.Perm()&exposed != 0 {
		return nil, fmt.Errorf("key file %s has mode %v: others may read or change it; chmod 600 it, and make a new key if somebody may have: %w", path, mode, ErrExposed)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxIdentityFile+1))
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	defer clear(text)
	if len(text) > maxIdentityFile {
		return nil, fmt.Errorf("key file %s has more than %d B: %w", path, maxIdentityFile, block.ErrInvalid)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("key file %s: want lines AGE-SECRET-KEY-1… or AGE-SECRET-KEY-PQ-1…, as `age-keygen` and `hv-storage-fabric store key new` write them: %w", path, block.ErrInvalid)
	}
	return ids, nil
}

// ErrExposed means that a file of secrets can be read by others than its owner.
var ErrExposed = errors.New("a secret that others can read")

// RecipientOf returns the recipient of an identity: X25519 or its post-quantum hybrid; block.ErrInvalid for another kind.
func RecipientOf(id age.Identity) (string, error) {
	switch id := id.(type) {
	case *age.X25519Identity:
		return id.Recipient().String(), nil
	case *age.HybridIdentity:
		return id.Recipient().String(), nil
	}
	return "", fmt.Errorf("an age identity of another kind than X25519 and its post-quantum hybrid: %w", block.ErrInvalid)
}

// ParseRecipient reads an age recipient, age1… or age1pq1….
func ParseRecipient(text string) (age.Recipient, error) {
	r, err := age.ParseHybridRecipient(text)
	if err == nil {
		return r, nil
	}
	x, err := age.ParseX25519Recipient(text)
	if err != nil {
		return nil, fmt.Errorf("age recipient %q: want age1… or age1pq1…: %w", text[:min(len(text), 80)], block.ErrInvalid)
	}
	return x, nil
}

// Recipients returns the recipients of identities.
func Recipients(identities []age.Identity) (all []string, err error) {
	for _, id := range identities {
		r, err := RecipientOf(id)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return all, nil
}
