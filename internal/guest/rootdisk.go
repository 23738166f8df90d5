package guest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// prepareDisk returns the path of the root disk that spec asks for, built from a folder by mke2fs: no mount, no loop device.
func prepareDisk(ctx context.Context, parent string, spec Spec, kernel *kernelBuild) (string, error) {
	name := cacheKey(string(spec.Kind), spec, kernel.Release)
	dir, err := buildFolder(parent, name, func(dir string) error {
		tree := filepath.Join(dir, "tree")
		defer os.RemoveAll(tree)
		if err := fillTree(ctx, parent, tree, spec, kernel); err != nil {
			return err
		}
		return makeExt4(ctx, filepath.Join(dir, "root.raw"), tree, spec.DiskSizeBytes)
	})
	return filepath.Join(dir, "root.raw"), err
}

// fillTree makes the root folder of a guest.
func fillTree(ctx context.Context, parent, tree string, spec Spec, kernel *kernelBuild) error {
	var err error
	if spec.Kind == Debian {
		err = fillDebianTree(ctx, parent, tree, spec)
	} else {
		err = fillBusyboxTree(ctx, tree, spec, kernel)
	}
	if err != nil {
		return err
	}
	if err := writeTreeFile(tree, "usr/lib/hv-guest/task", 0o755, script("task.sh")); err != nil {
		return err
	}
	if err := writeTreeFile(tree, "etc/hostname", 0o644, fmt.Appendf(nil, "hv-guest-%d\n", spec.Variant)); err != nil {
		return err
	}
	modules := filepath.Join(tree, "lib/modules", kernel.Release)
	if err := copyTree(kernel.modules(), modules, newBudget(spec.DiskSizeBytes/3)); err != nil {
		return fmt.Errorf("copy kernel modules: %w", err)
	}
	if spec.Variant == 0 {
		return nil
	}
	// Own data near the front of the disk makes a variant's later files lie elsewhere than in its siblings.
	own := make([]byte, spec.DiskSizeBytes/64)
	source := rand.NewChaCha8([32]byte{byte(spec.Variant), byte(spec.Variant >> 8), byte(spec.Variant >> 16)})
	_, _ = source.Read(own) // documented never to fail
	return writeTreeFile(tree, "a-own-data", 0o644, own)
}

// fillBusyboxTree makes a small root with busybox for every program, then adds real data of this machine: the most that
// leaves about a third of the disk free.
func fillBusyboxTree(ctx context.Context, tree string, spec Spec, kernel *kernelBuild) error {
	for _, dir := range []string{"bin", "sbin", "dev", "proc", "sys", "run", "tmp", "root", "lib/modules"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	busybox, err := os.ReadFile(kernel.path("busybox"))
	if err != nil {
		return err
	}
	if err := writeTreeFile(tree, "bin/busybox", 0o755, busybox); err != nil {
		return err
	}
	applets, err := exec.CommandContext(ctx, kernel.path("busybox"), "--list").Output()
	if err != nil {
		return fmt.Errorf("list the programs of busybox: %w", err)
	}
	if err := linkApplets(tree, string(applets)); err != nil {
		return err
	}
	if err := writeTreeFile(tree, "sbin/init", 0o755, script("busybox-init.sh")); err != nil {
		return err
	}
	content := newBudget(spec.DiskSizeBytes * 45 / 100)
	for _, dir := range []string{"/usr/share", "/usr/lib", "/usr/bin"} {
		if err := copyTree(dir, filepath.Join(tree, dir), content); err != nil {
			return fmt.Errorf("copy %s: %w", dir, err)
		}
	}
	return nil
}

// makeExt4 writes a raw ext4 of the given size with the files of tree. The file is sparse, and complete: nothing is left for
// the guest's kernel to initialise in the background, so what the guest writes is what its task writes.
func makeExt4(ctx context.Context, path, tree string, sizeBytes int64) error {
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(path, sizeBytes); err != nil {
		return err
	}
	_, err := command{}.run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "hv-root", "-b", "4096", "-i", strconv.Itoa(bytesPerInode),
		"-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-d", tree, path)
	return err
}
