package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxEntries bounds the entries of an archive.
const maxEntries = 1 << 20

// Unpack writes what an archive holds below a folder, which is made, or is empty (else block.ErrExists). Owners are set when this process may, modes and times always, of folders in the end. An archive with a name that leads out of the folder, through a
// link too, or with anything but files, folders and links, is block.ErrCorrupt; what came before it was written.
func Unpack(r io.Reader, dir string) (done Packed, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return done, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if entries, err := os.ReadDir(dir); err != nil {
		return done, err
	} else if len(entries) > 0 {
		return done, fmt.Errorf("%s is not empty: %w", dir, block.ErrExists)
	}
	u := &unpacking{root: root, done: &done}
	t := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return done, u.folders()
		}
		if err != nil {
			return done, fmt.Errorf("archive: %w: %w", err, block.ErrCorrupt)
		}
		if err := u.entry(h, t); err != nil {
			return done, err
		}
		if n > maxEntries {
			return done, fmt.Errorf("archive with more than %d entries: %w", maxEntries, block.ErrCorrupt)
		}
	}
}

type unpacking struct {
	root *os.Root
	done *Packed
	dirs []*tar.Header // whose modes and times are set in the end
}

// entry writes one entry.
func (u *unpacking) entry(h *tar.Header, r io.Reader) error {
	name := filepath.Clean(strings.TrimSuffix(h.Name, "/"))
	if !filepath.IsLocal(name) {
		return fmt.Errorf("archive: name %q leads out of the folder: %w", h.Name, block.ErrCorrupt)
	}
	if parent := filepath.Dir(name); parent != "." {
		if err := u.root.MkdirAll(parent, 0o700); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.MkdirAll(name, 0o700); err != nil {
			return err
		}
		u.dirs = append(u.dirs, h)
		return nil
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(name, h)
	case tar.TypeReg:
		return u.file(name, h, r)
	}
	return fmt.Errorf("archive: %q is of type %q: %w", h.Name, h.Typeflag, block.ErrCorrupt)
}

func (u *unpacking) file(name string, h *tar.Header, r io.Reader) error {
	if u.done.Bytes += h.Size; h.Size < 0 || u.done.Bytes > MaxBytes {
		return fmt.Errorf("archive with more than %d B: %w", int64(MaxBytes), block.ErrCorrupt)
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	u.done.Files++
	return u.finish(name, h)
}

// finish gives an entry its owner, then its mode, which a change of owner would take bits of, and its time.
func (u *unpacking) finish(name string, h *tar.Header) error {
	if err := u.own(name, h); err != nil {
		return err
	}
	if err := u.root.Chmod(name, h.FileInfo().Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

func (u *unpacking) own(name string, h *tar.Header) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return u.root.Lchown(name, h.Uid, h.Gid)
}

// folders finishes folders, the deepest first.
func (u *unpacking) folders() error {
	slices.Reverse(u.dirs)
	for _, h := range u.dirs {
		if err := u.finish(filepath.Clean(strings.TrimSuffix(h.Name, "/")), h); err != nil {
			return err
		}
	}
	return nil
}
