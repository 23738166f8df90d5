package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEncryptedAtRest writes to an encrypted store, kills the daemon, and reads everything back; no file of it has what was written, and nobody starts it without its key.
func TestEncryptedAtRest(t *testing.T) {
	d := newDaemon(t)
	keys := shortDir(t)
	key, other := filepath.Join(keys, "key"), filepath.Join(keys, "other")
	mine := strings.TrimSpace(d.key("new", key))
	theirs := strings.TrimSpace(d.key("new", other, "--x25519"))
	plain := d.flags
	use := func(flags ...string) { d.flags = append(plain[:len(plain):len(plain)], flags...) }

	use("--store-key-file", key)
	d.start()
	d.disk("disk", "32MiB")
	words := bytes.Repeat([]byte("what a guest wrote; "), 1<<20/20)
	half := len(words) / 2 &^ 4095
	write := func(off uint64, p []byte) {
		t.Helper()
		c := openNBD(t, d.nbdSocket(), "disk")
		if err := c.write(p, off); err != nil {
			t.Fatal(err)
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
	}
	read := func() {
		t.Helper()
		c := openNBD(t, d.nbdSocket(), "disk")
		got := make([]byte, half)
		for _, off := range []uint64{0, 8 << 20} {
			if err := c.read(got, off); err != nil || !bytes.Equal(got, words[:half]) {
				t.Fatalf("read at %d: %v, or other bytes", off, err)
			}
		}
	}
	write(0, words[:half])
	d.settle()
	write(8<<20, words[:half])
	d.kill()
	d.hides("what a guest wrote")
	d.start()
	read()
	d.stop()
	d.hides("what a guest wrote")

	use()
	d.refusesToStart(4, "no key was given", "--store-key-file")
	use("--store-key-file", other)
	d.refusesToStart(4, "none of the keys given")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	use("--store-key-file", key)
	d.refusesToStart(4, "store.key-file", "chmod 600")
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}

	d.key("add", d.dir, theirs, "--key-file", key)
	d.key("rotate", d.dir, "--key-file", other)
	d.key("remove", d.dir, mine, "--key-file", other)
	if got := d.key("list", d.dir); !strings.Contains(got, theirs) || strings.Contains(got, mine) {
		t.Errorf("store key list says %q", got)
	}
	d.refusesToStart(4, "none of the keys given")
	use("--store-key-file", other)
	d.start()
	read()
	d.stop()
	d.check()
}

// key runs a command of store key, which must end well, and returns what it says.
func (d *daemon) key(args ...string) string {
	d.t.Helper()
	got := d.try(append([]string{"store", "key"}, args...)...)
	if got.code != 0 {
		d.t.Fatalf("store key %s ended with %d: %s", args[0], got.code, got.stderr)
	}
	return got.stdout
}

// hides fails if a file in the data directory has a text.
func (d *daemon) hides(text string) {
	d.t.Helper()
	err := filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && bytes.Contains(contents(d.t, path), []byte(text)) {
			d.t.Errorf("%s holds %q", path, text)
		}
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
}
