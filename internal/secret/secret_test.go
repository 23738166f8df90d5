package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestSecretsAreNotPrinted(t *testing.T) {
	s, err := FromBytes([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb, s); got != "secret" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
	if b, err := json.Marshal(s); err == nil {
		t.Errorf("as JSON it is %s", b)
	}
}

// What is no file is refused at once, and a FIFO that nobody writes to is not waited for.
func TestKeyFileMustBeAFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, t.TempDir(), os.DevNull} {
		if _, err := ReadIdentities(path, OwnerOnly); !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestReadIdentities(t *testing.T) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		exposed    os.FileMode
		want       error
	}{
		{"key", "# comment\n" + id.String() + "\n", 0o600, OwnerOnly, nil},
		{"credential", id.String(), 0o440, Credential, nil},
		{"group", id.String(), 0o640, OwnerOnly, ErrExposed},
		{"world", id.String(), 0o604, Credential, ErrExposed},
		{"empty", "", 0o600, OwnerOnly, block.ErrInvalid},
		{"nonsense", id.String() + "\nAGE-SECRET-KEY-1NONSENSE\n", 0o600, OwnerOnly, block.ErrInvalid},
		{"long", strings.Repeat("#\n", maxIdentityFile), 0o600, OwnerOnly, block.ErrInvalid},
	} {
		path := filepath.Join(t.TempDir(), c.name)
		if err := errors.Join(os.WriteFile(path, []byte(c.text), 0o600), os.Chmod(path, c.mode)); err != nil {
			t.Fatal(err)
		}
		ids, err := ReadIdentities(path, c.exposed)
		if !errors.Is(err, c.want) || c.want == nil && len(ids) != 1 {
			t.Errorf("%s: %d identities, %v, want %v", c.name, len(ids), err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "NONSENSE") {
			t.Errorf("%s: the error shows the key: %v", c.name, err)
		}
	}
}
