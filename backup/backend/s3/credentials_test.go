package s3

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestFindCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(path, []byte("[default]\naws_access_key_id = a\naws_secret_access_key = b\n[other]\naws_access_key_id = c\naws_secret_access_key = d\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	find := func(env map[string]string) (string, error) {
		c, err := FindCredentials(func(name string) string { return env[name] })
		if err != nil {
			return "", err
		}
		v, err := c.GetWithContext(nil)
		return v.AccessKeyID + v.SecretAccessKey, err
	}
	for _, c := range []struct {
		env  map[string]string
		want string
		err  error
	}{
		{map[string]string{"AWS_ACCESS_KEY_ID": "e", "AWS_SECRET_ACCESS_KEY": "f", "AWS_SHARED_CREDENTIALS_FILE": path}, "ef", nil},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": path}, "ab", nil},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": path, "AWS_PROFILE": "other"}, "cd", nil},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": path, "AWS_PROFILE": "none"}, "", block.ErrInvalid},
		{map[string]string{"HOME": t.TempDir()}, "", block.ErrInvalid},
	} {
		if got, err := find(c.env); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%v: got %q, %v, want %q, %v", c.env, got, err, c.want, c.err)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := find(map[string]string{"AWS_SHARED_CREDENTIALS_FILE": path}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a file that others may read: got %v, want %v", err, fs.ErrPermission)
	}
}
