package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Kind says which userland a guest has.
type Kind string

const (
	// Busybox boots in seconds: the static busybox, the kernel's modules and a few hundred MB of this machine's /usr.
	Busybox Kind = "busybox"
	// Debian is a whole minimal Debian with systemd. Building it needs root and takes a minute or two.
	Debian Kind = "debian"
)

// recipe is part of every cache key: raise it when a change of this package makes old images unusable.
const recipe = 1

// Spec describes an image. The zero value of each field means its default.
type Spec struct {
	Kind          Kind   // default Busybox
	DiskSizeBytes int64  // of the root disk; default 512 MiB for Busybox, 2 GiB for Debian; a multiple of 4096
	Variant       int    // images that differ only here are similar, not equal, as two machines of one make are; default 0
	Suite         string // Debian release of a Debian guest, such as "trixie"; default: the machine's own, or "bookworm"
}

// Image is a guest that is ready to boot. Its files belong to the cache: they may be read and copied, never written.
type Image struct {
	Kind          Kind
	KernelRelease string // as uname -r in the guest
	Kernel        string // path of the uncompressed vmlinux
	Initramfs     string // path of the gzipped initramfs
	Disk          string // path of the raw, sparse root disk: an ext4 with no partition table
	DiskSizeBytes int64
	CacheDir      string // the folder that Prepare was given
}

// Prepare returns the default image of a kind, from the cache or newly built. See PrepareSpec.
func Prepare(ctx context.Context, cacheDir string, kind Kind) (*Image, error) {
	return PrepareSpec(ctx, cacheDir, Spec{Kind: kind})
}

// PrepareSpec returns an image, building in cacheDir/guest what is not there yet.
//
// With a warm cache it starts no program and uses no network. Two processes may call it at once: one builds, the other waits.
// What is built becomes visible by a rename, so an interrupted build leaves nothing that a later one would trust.
// A program that is missing is an error of one line that names the package to install.
func PrepareSpec(ctx context.Context, cacheDir string, spec Spec) (*Image, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("prepare guest: %w", err)
	}
	cacheDir, err = filepath.Abs(cacheDir)
	if err != nil {
		return nil, fmt.Errorf("prepare guest: %w", err)
	}
	dir := filepath.Join(cacheDir, "guest")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("prepare guest: %w", err)
	}
	unlock, err := lockFolder(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("prepare guest: %w", err)
	}
	defer unlock()
	if err := removeUnfinished(dir); err != nil {
		return nil, fmt.Errorf("prepare guest: %w", err)
	}
	kernel, err := prepareKernel(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("prepare guest kernel: %w", err)
	}
	disk, err := prepareDisk(ctx, dir, spec, kernel)
	if err != nil {
		return nil, fmt.Errorf("prepare %s guest disk: %w", spec.Kind, err)
	}
	return &Image{
		Kind: spec.Kind, KernelRelease: kernel.Release, Kernel: kernel.path("vmlinux"), Initramfs: kernel.path("initramfs.gz"),
		Disk: disk, DiskSizeBytes: spec.DiskSizeBytes, CacheDir: cacheDir,
	}, nil
}

func (s Spec) withDefaults() (Spec, error) {
	if s.Kind == "" {
		s.Kind = Busybox
	}
	switch {
	case s.Kind != Busybox && s.Kind != Debian:
		return s, fmt.Errorf("unknown kind %q, want %q or %q", s.Kind, Busybox, Debian)
	case s.DiskSizeBytes == 0 && s.Kind == Busybox:
		s.DiskSizeBytes = 512 << 20
	case s.DiskSizeBytes == 0:
		s.DiskSizeBytes = 2 << 30
	}
	if minimum := int64(160 << 20); s.DiskSizeBytes < minimum || s.DiskSizeBytes%4096 != 0 {
		return s, fmt.Errorf("disk of %d bytes: want at least %d and a multiple of 4096", s.DiskSizeBytes, minimum)
	}
	if s.Kind == Debian && s.Suite == "" {
		s.Suite = machineSuite()
	}
	return s, nil
}

// cacheKey names a build by everything that decides its content.
func cacheKey(prefix string, parts ...any) string {
	hash := sha256.New()
	fmt.Fprintln(hash, recipe, parts)
	entries, err := fs.ReadDir(scripts, "scripts")
	if err != nil {
		panic(fmt.Sprintf("guest: embedded files: %v", err))
	}
	for _, entry := range entries {
		body := script(entry.Name())
		fmt.Fprintln(hash, entry.Name(), len(body))
		hash.Write(body)
	}
	return prefix + "-" + hex.EncodeToString(hash.Sum(nil)[:6])
}

// buildingPrefix starts the name of a folder that is not complete.
const buildingPrefix = "building-"

// removeUnfinished deletes what builds left that were killed. The lock must be held, so no build is running.
func removeUnfinished(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, buildingPrefix+"*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// buildFolder returns parent/name, made by build in a temporary folder beside it if it is not there yet.
func buildFolder(parent, name string, build func(dir string) error) (string, error) {
	final := filepath.Join(parent, name)
	if _, err := os.Stat(final); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return final, err
	}
	temp, err := os.MkdirTemp(parent, buildingPrefix)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp) // fails harmlessly after the rename
	if err := os.Chmod(temp, 0o755); err != nil {
		return "", err
	}
	if err := build(temp); err != nil {
		return "", err
	}
	return final, os.Rename(temp, final)
}

// lockFolder takes an exclusive lock on dir against other processes, waiting for it until ctx ends.
func lockFolder(ctx context.Context, dir string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !slices.Contains([]error{unix.EWOULDBLOCK, unix.EINTR}, err) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("wait for lock %s: %w", file.Name(), ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// writeJSON and readJSON keep the small facts of a build beside it.
func writeJSON(path string, value any) error {
	body, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(path, append(body, '\n'))
}

// replaceFile writes a file as a whole: another process that reads it meanwhile sees what was there before, or what is there now.
func replaceFile(path string, body []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path))
	if err != nil {
		return err
	}
	_, err = temp.Write(body)
	if err = errors.Join(err, temp.Chmod(0o644), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

func readJSON(path string, value any) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, value); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
