package files

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// What is packed and unpacked is as it was: content, modes, times, owners, links; and packs to the same bytes again.
func TestPackAndUnpack(t *testing.T) {
	from := filepath.Join(t.TempDir(), "etc")
	when := time.Unix(1_700_000_000, 0)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(from, "deep", "er"), 0o755))
	must(os.WriteFile(filepath.Join(from, "hvd.yaml"), []byte("memory: 1GiB\n"), 0o640))
	must(os.WriteFile(filepath.Join(from, "deep", "er", "empty"), nil, 0o600))
	must(os.Symlink("../hvd.yaml", filepath.Join(from, "deep", "link")))
	must(os.Symlink("/outside", filepath.Join(from, "abroad")))
	must(syscall.Mkfifo(filepath.Join(from, "pipe"), 0o600))
	must(os.Chtimes(filepath.Join(from, "hvd.yaml"), when, when))
	must(os.Chmod(filepath.Join(from, "deep"), 0o500))
	defer os.Chmod(filepath.Join(from, "deep"), 0o755)
	var first, again bytes.Buffer
	done, err := Pack(&first, []string{filepath.Join(from, "hvd.yaml"), from})
	must(err)
	if done.Files != 2 || !slices.Equal(done.Skipped, []string{filepath.Join(from, "pipe")}) {
		t.Errorf("packed %+v", done)
	}
	if _, err := Pack(&again, []string{from, from}); err != nil || !bytes.Equal(first.Bytes(), again.Bytes()) {
		t.Errorf("the same files make other bytes: %v", err)
	}
	to := filepath.Join(t.TempDir(), "new")
	if got, err := Unpack(bytes.NewReader(first.Bytes()), to); err != nil || got.Files != 2 {
		t.Fatal(got, err)
	}
	at := filepath.Join(to, from)
	text, err := os.ReadFile(filepath.Join(at, "hvd.yaml"))
	must(err)
	info, err := os.Stat(filepath.Join(at, "hvd.yaml"))
	must(err)
	if string(text) != "memory: 1GiB\n" || info.Mode() != 0o640 || !info.ModTime().Equal(when) {
		t.Errorf("%q %v %v", text, info.Mode(), info.ModTime())
	}
	for name, want := range map[string]string{"deep/link": "../hvd.yaml", "abroad": "/outside"} {
		if got, err := os.Readlink(filepath.Join(at, name)); err != nil || got != want {
			t.Errorf("link %s leads to %q, %v", name, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(at, "deep")); err != nil || info.Mode().Perm() != 0o500 {
		t.Errorf("%v, %v", info, err)
	}
	must(os.Chmod(filepath.Join(at, "deep"), 0o755))
	if _, err := Unpack(bytes.NewReader(first.Bytes()), to); !errors.Is(err, block.ErrExists) {
		t.Errorf("unpacked over something: %v", err)
	}
}

// Nothing is written outside the folder, whatever an archive says.
func TestHostileArchives(t *testing.T) {
	outside := t.TempDir()
	for name, entries := range map[string][]tar.Header{
		"up":               {{Name: "../x", Typeflag: tar.TypeReg}},
		"absolute":         {{Name: outside + "/x", Typeflag: tar.TypeReg}},
		"through a link":   {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/x", Typeflag: tar.TypeReg}},
		"over a link":      {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside + "/x"}, {Name: "l", Typeflag: tar.TypeReg}},
		"a hard link":      {{Name: "x", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}},
		"a device":         {{Name: "x", Typeflag: tar.TypeBlock, Devmajor: 1}},
		"mode of a link":   {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l", Typeflag: tar.TypeDir, Mode: 0o777}},
		"nothing":          {{Name: "", Typeflag: tar.TypeReg}},
		"too much of it":   {{Name: "x", Typeflag: tar.TypeReg, Size: MaxBytes + 1}},
		"folders by links": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/d/x", Typeflag: tar.TypeDir}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			h.Format = tar.FormatPAX
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(name, err)
			}
		}
		_ = w.Flush()
		if _, err := Unpack(&b, filepath.Join(t.TempDir(), "to")); err == nil {
			t.Errorf("%s: it is unpacked", name)
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			t.Fatalf("%s: outside there is %v, %v", name, left, err)
		}
	}
}
