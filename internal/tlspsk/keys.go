package tlspsk

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Bounds on a file of keys. A key that can be guessed is worse than none, since who has seen one handshake can try at leisure (RFC 9257, 4.2).
const (
	maxFile     = 1 << 20
	maxIdentity = 120 // bytes
	minKey      = 16  // bytes
	maxKey      = 256 // bytes
)

// Keys are the identities that a server knows, each with what its key makes of the first stage of the key schedule.
type Keys struct {
	early map[string]secret
	decoy secret // makes up what an unknown identity would have
}

// LoadKeys reads a file of keys as psktool writes it and QEMU and libnbd read it: a line IDENTITY:HEX for each. Errors never tell a key; they wrap block.ErrInvalid if the
// file can be read but not used.
func LoadKeys(path string) (*Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load pre-shared keys: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("load pre-shared keys: %w", err)
	}
	keys, err := ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("load pre-shared keys %s: %w: %w", path, err, block.ErrInvalid)
	}
	return keys, nil
}

// ParseKeys is LoadKeys of what the file holds.
func ParseKeys(text []byte) (*Keys, error) {
	if len(text) > maxFile {
		return nil, errors.New("larger than 1 MiB")
	}
	k := &Keys{early: map[string]secret{}}
	if _, err := rand.Read(k.decoy[:]); err != nil {
		return nil, err
	}
	owners := map[secret]string{}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			continue
		}
		identity, early, err := parseKey(string(line))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if _, twice := k.early[identity]; twice {
			return nil, fmt.Errorf("line %d: identity %q is there twice", number, identity)
		}
		if owner := owners[early]; owner != "" {
			return nil, fmt.Errorf("line %d: identity %q has the key of %q, so each could pass for the other", number, identity, owner)
		}
		k.early[identity], owners[early] = early, identity
	}
	if len(k.early) == 0 {
		return nil, errors.New("no key in it; want a line IDENTITY:HEX for each client")
	}
	return k, nil
}

// parseKey parses one line.
func parseKey(line string) (identity string, early secret, err error) {
	identity, digits, found := strings.Cut(line, ":")
	switch {
	case !found:
		return "", secret{}, errors.New("want IDENTITY:HEX")
	case strings.HasPrefix(identity, "#"):
		return "", secret{}, errors.New("an identity that begins with # is one in hexadecimal to GnuTLS, which is not supported, and no comment")
	}
	if err := CheckIdentity(identity); err != nil {
		return "", secret{}, err
	}
	key, err := hex.DecodeString(digits)
	switch {
	case err != nil:
		return "", secret{}, fmt.Errorf("the key of %q is not an even number of hexadecimal digits", identity) // err would quote a digit of it
	case len(key) < minKey || len(key) > maxKey:
		return "", secret{}, fmt.Errorf("the key of %q has %d bytes, want %d to %d", identity, len(key), minKey, maxKey)
	}
	return identity, earlySecret(key), nil
}

// CheckIdentity accepts 1 to 120 bytes of UTF-8 without colons and what cannot be printed.
func CheckIdentity(identity string) error {
	switch {
	case identity == "":
		return errors.New("empty identity")
	case len(identity) > maxIdentity:
		return fmt.Errorf("identity of %d bytes, at most %d are allowed", len(identity), maxIdentity)
	case !utf8.ValidString(identity) || strings.ContainsFunc(identity, func(r rune) bool { return r == ':' || !unicode.IsPrint(r) }):
		return fmt.Errorf("identity %q: want text without colons and control characters", identity)
	}
	return nil
}

// Has reports whether there is a key for an identity.
func (k *Keys) Has(identity string) bool {
	_, known := k.early[identity]
	return known
}

// maxOffered is how many identities of one client are looked at.
const maxOffered = 8

// choose picks the first identity that is known. If none is, it is the first one with a secret that nobody has: the same work is done for either.
func (k *Keys) choose(offered [][]byte) (index int, early secret, known bool) {
	early = mac(k.decoy[:], offered[0])
	for i := min(len(offered), maxOffered) - 1; i >= 0; i-- {
		found, is := k.early[string(offered[i])]
		choice := 0
		if is {
			choice = 1
		}
		subtle.ConstantTimeCopy(choice, early[:], found[:])
		index = subtle.ConstantTimeSelect(choice, i, index)
		known = known || is
	}
	return index, early, known
}
