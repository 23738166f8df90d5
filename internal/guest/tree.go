package guest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// bytesPerInode makes a disk have one inode for each so many bytes: documentation is many small files.
const bytesPerInode = 8192

// largestCopiedFile keeps a single huge library from being most of a guest.
const largestCopiedFile = 32 << 20

// budget is what a tree may still take of its disk.
type budget struct {
	bytes  int64
	inodes int64
}

// newBudget allows bytes of data, and as many files as a disk of that size has inodes.
func newBudget(bytes int64) *budget { return &budget{bytes: bytes, inodes: bytes / bytesPerInode} }

// take charges one file of size bytes, in whole blocks, and reports whether it fits.
func (b *budget) take(size int64) bool {
	const blockSize = 4096
	blocks := (size + blockSize - 1) / blockSize * blockSize
	if b.bytes < blocks || b.inodes < 1 {
		return false
	}
	b.bytes -= blocks
	b.inodes--
	return true
}

// copyTree copies folders, regular files and symbolic links below source, in lexical order, while the budget lasts.
// Files that cannot be read, are not readable to everyone or are very large are left out: the copy is for realism only.
func copyTree(source, target string, left *budget) error {
	return filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return skipUnreadable(entry, err)
		}
		info, err := entry.Info()
		if err != nil {
			return skipUnreadable(entry, err)
		}
		relative, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		to := filepath.Join(target, relative)
		switch {
		case info.IsDir():
			if !left.take(1) {
				return filepath.SkipAll
			}
			return os.MkdirAll(to, 0o755)
		case info.Mode()&fs.ModeSymlink != 0:
			return copyLink(path, to, left)
		case info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 && info.Size() <= largestCopiedFile && left.take(info.Size()):
			return copyFile(path, to, info.Mode().Perm())
		}
		return nil
	})
}

// skipUnreadable goes on after a folder that may not be listed, or a file that is gone by now.
func skipUnreadable(entry fs.DirEntry, err error) error {
	if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if entry != nil && entry.IsDir() {
		return filepath.SkipDir
	}
	return nil
}

func copyLink(from, to string, left *budget) error {
	target, err := os.Readlink(from)
	if err != nil || !left.take(1) {
		return err
	}
	if err := os.Symlink(target, to); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func copyFile(from, to string, perm fs.FileMode) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm|0o200)
	if err != nil {
		return err
	}
	defer target.Close()
	if _, err := io.Copy(target, source); err != nil {
		return err
	}
	return target.Close()
}

// writeTreeFile writes one file of a guest's root folder and makes the folders above it.
func writeTreeFile(tree, name string, perm fs.FileMode, body []byte) error {
	path := filepath.Join(tree, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, body, perm)
}

// linkApplets makes bin/NAME a link to busybox for each name of the list.
func linkApplets(tree, names string) error {
	for _, name := range strings.Fields(names) {
		if name == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", name)); err != nil {
			return err
		}
	}
	return nil
}
