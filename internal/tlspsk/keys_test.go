package tlspsk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestParseKeys(t *testing.T) {
	keys, err := ParseKeys([]byte("alice:" + testKey + "\r\n\nzoë at home:" + strings.ToUpper(testKey[2:]) + "ee"))
	if err != nil || !keys.Has("alice") || !keys.Has("zoë at home") || keys.Has("bob") {
		t.Fatalf("%+v, %v", keys, err)
	}
	for text, says := range map[string]string{
		"":                         "no key",
		"\n\n":                     "no key",
		"alice":                    "line 1: want IDENTITY:HEX",
		"\nalice " + testKey:       "line 2: want IDENTITY:HEX",
		":" + testKey:              "empty identity",
		"#616c:" + testKey:         "begins with #",
		"a\tb:" + testKey:          "control characters",
		"a\xff:" + testKey:         "control characters",
		"alice:" + testKey[1:]:     "hexadecimal",
		"alice:" + testKey + ":01": "hexadecimal",
		"alice: " + testKey:        "hexadecimal",
		"alice:" + testKey[2:]:     "15 bytes",
		"alice:":                   "0 bytes",
		"alice:" + strings.Repeat("00", maxKey+1):                   "257 bytes",
		strings.Repeat("a", maxIdentity+1) + ":" + testKey:          "121 bytes",
		"alice:" + testKey + "\nalice:" + testKey[2:] + "ff":        `"alice" is there twice`,
		"alice:" + testKey + "\nbob:" + testKey:                     `"bob" has the key of "alice"`,
		"alice:" + testKey + "\n" + strings.Repeat("\n", maxFile+1): "1 MiB",
	} {
		_, err := ParseKeys([]byte(text))
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), testKey[2:10]) {
			t.Errorf("%.60q: %v, want %q", text, err, says)
		}
	}
}

func TestLoadKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.psk")
	if _, err := LoadKeys(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("\n"), maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(path); !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("a large file: %v", err)
	}
}

// TestChoose takes the first identity that is known, and makes up a secret for those that are not, always the same.
func TestChoose(t *testing.T) {
	keys := testKeys(t)
	offer := func(names ...string) (all [][]byte) {
		for _, n := range names {
			all = append(all, []byte(n))
		}
		return all
	}
	index, early, known := keys.choose(offer("x", "bob", "alice"))
	if index != 1 || !known || early != keys.early["bob"] {
		t.Errorf("identity %d, %v", index, known)
	}
	index, early, known = keys.choose(offer("x", "y"))
	if index != 0 || known || early == (secret{}) {
		t.Errorf("identity %d, %v", index, known)
	}
	if _, again, _ := keys.choose(offer("x")); again != early {
		t.Error("another secret for the same identity")
	}
	if _, other, _ := keys.choose(offer("y")); other == early {
		t.Error("one secret for two identities")
	}
	if _, _, known := keys.choose(append(offer(strings.Split(strings.Repeat("x", maxOffered), "")...), []byte("alice"))); known {
		t.Error("more identities were looked at than may be")
	}
}
