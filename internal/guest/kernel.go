package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// kernelBuild is the folder with what every guest shares: vmlinux, initramfs.gz, the busybox program and the module tree.
type kernelBuild struct {
	dir     string
	Package string // the Debian package it comes from
	Release string // as uname -r
}

func (k *kernelBuild) path(name string) string { return filepath.Join(k.dir, name) }

// modules returns the folder lib/modules/RELEASE of the kernel package.
func (k *kernelBuild) modules() string { return k.path("modules") }

// prepareKernel returns the kernel in the cache. Its version is the one that was current when the cache was filled.
func prepareKernel(ctx context.Context, parent string) (*kernelBuild, error) {
	dir, err := buildFolder(parent, cacheKey("kernel"), func(dir string) error { return buildKernel(ctx, dir) })
	if err != nil {
		return nil, err
	}
	kernel := &kernelBuild{dir: dir}
	if err := readJSON(kernel.path("kernel.json"), kernel); err != nil {
		return nil, err
	}
	return kernel, nil
}

// buildKernel fills dir from the kernel package and from busybox-static.
func buildKernel(ctx context.Context, dir string) error {
	name, err := currentKernelPackage(ctx)
	if err != nil {
		return err
	}
	unpacked := filepath.Join(dir, "unpacked")
	defer os.RemoveAll(unpacked)
	kernelFiles, err := unpackPackage(ctx, unpacked, name)
	if err != nil {
		return err
	}
	busyboxFiles, err := unpackPackage(ctx, unpacked, "busybox-static")
	if err != nil {
		return err
	}
	kernel := &kernelBuild{dir: dir, Package: name}
	if err := kernel.takeKernel(ctx, kernelFiles); err != nil {
		return err
	}
	if err := kernel.takeBusybox(busyboxFiles); err != nil {
		return err
	}
	if err := kernel.buildInitramfs(ctx); err != nil {
		return err
	}
	return writeJSON(kernel.path("kernel.json"), kernel)
}

// takeKernel extracts vmlinux and moves the module tree out of the unpacked kernel package.
func (k *kernelBuild) takeKernel(ctx context.Context, files string) error {
	images, err := filepath.Glob(filepath.Join(files, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("package %s: want one boot/vmlinuz, got %d", k.Package, len(images))
	}
	k.Release = filepath.Base(images[0])[len("vmlinuz-"):]
	bzImage, err := os.ReadFile(images[0])
	if err != nil {
		return err
	}
	vmlinux, err := extractVmlinux(ctx, bzImage)
	if err != nil {
		return fmt.Errorf("package %s: %w", k.Package, err)
	}
	if err := os.WriteFile(k.path("vmlinux"), vmlinux, 0o644); err != nil {
		return err
	}
	tree, err := firstExisting(filepath.Join(files, "lib/modules", k.Release), filepath.Join(files, "usr/lib/modules", k.Release))
	if err != nil {
		return fmt.Errorf("package %s: find kernel modules: %w", k.Package, err)
	}
	return os.Rename(tree, k.modules())
}

func (k *kernelBuild) takeBusybox(files string) error {
	program, err := firstExisting(filepath.Join(files, "bin/busybox"), filepath.Join(files, "usr/bin/busybox"))
	if err != nil {
		return fmt.Errorf("package busybox-static: %w", err)
	}
	return os.Rename(program, k.path("busybox"))
}

func (k *kernelBuild) buildInitramfs(ctx context.Context) error {
	tree, err := openModuleTree(k.modules())
	if err != nil {
		return err
	}
	modules, err := tree.load(ctx, guestModules()...)
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile(k.path("busybox"))
	if err != nil {
		return err
	}
	file, err := os.Create(k.path("initramfs.gz"))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := writeInitramfs(file, busybox, modules); err != nil {
		return err
	}
	return file.Close()
}

// firstExisting returns the first of the paths that exists; the error is that of the last one.
func firstExisting(paths ...string) (string, error) {
	var last error
	for _, path := range paths {
		if _, last = os.Stat(path); last == nil {
			return path, nil
		}
	}
	return "", last
}
