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
	"syscall"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// MaxBytes bounds what Pack puts into one archive: it is for configuration, not for disks.
const MaxBytes = 1 << 30

// Packed is what an archive holds.
type Packed struct {
	Files   int
	Bytes   int64
	Skipped []string // sockets, devices and pipes
}

// Pack writes an archive of files and folders, with what is in these, by their absolute paths without the leading slash, in order of their names. Symbolic links are kept as such. A file that becomes shorter while it is read is an error: pack again.
// block.ErrInvalid if there is more than MaxBytes.
func Pack(w io.Writer, paths []string) (done Packed, err error) {
	t := tar.NewWriter(w)
	all := make([]string, 0, len(paths))
	for _, path := range paths {
		path, err := filepath.Abs(path)
		if err != nil {
			return done, err
		}
		all = append(all, path)
	}
	slices.Sort(all)
	seen := make(map[string]bool)
	for _, path := range all {
		err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
			if err != nil || seen[path] {
				return err
			}
			seen[path] = true
			return done.add(t, path)
		})
		if err != nil {
			return done, err
		}
	}
	return done, t.Close()
}

// add adds one file, folder or link.
func (done *Packed) add(t *tar.Writer, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	link := ""
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	case !mode.IsRegular() && !mode.IsDir():
		done.Skipped = append(done.Skipped, path)
		return nil
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name = strings.TrimPrefix(path, "/")
	if info.IsDir() {
		h.Name += "/"
	}
	h.Format, h.ModTime, h.AccessTime, h.ChangeTime = tar.FormatPAX, info.ModTime().Truncate(time.Second), time.Time{}, time.Time{}
	h.Uname, h.Gname = "", "" // numbers are what counts, on a host that may know nobody yet
	if h.Name == "/" {
		return nil
	}
	if done.Bytes += h.Size; done.Bytes > MaxBytes {
		return fmt.Errorf("more than %d B of files; back up disks as volumes or images: %w", int64(MaxBytes), block.ErrInvalid)
	}
	if !info.Mode().IsRegular() {
		return t.WriteHeader(h)
	}
	done.Files++
	return copyFile(t, h, path)
}

// copyFile adds the content of a regular file.
func copyFile(t *tar.Writer, h *tar.Header, path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0) // it may have become something else
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if n, err := io.Copy(t, io.LimitReader(f, h.Size)); err != nil {
		return err
	} else if n < h.Size {
		return fmt.Errorf("%s became shorter while it was read: %w", path, io.ErrUnexpectedEOF)
	}
	return nil
}
