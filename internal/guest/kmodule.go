package guest

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// guestModules are loaded by the initramfs, after what they depend on. A name that a kernel has built in is no error.
func guestModules() []string { return []string{"virtio_pci", "virtio_blk"} }

// kernelModule is one module, unpacked, ready for insmod.
type kernelModule struct {
	name string // with underscores, as in "virtio_blk"
	elf  []byte
}

// moduleTree finds the modules of one kernel under lib/modules/RELEASE.
//
// The dependencies come from the modules' own .modinfo section: modules.dep does not exist yet in a package that was
// unpacked and not installed, since depmod writes it during the installation.
type moduleTree struct {
	paths   map[string]string // file of each module by name
	builtin map[string]bool
}

func openModuleTree(dir string) (*moduleTree, error) {
	tree := &moduleTree{paths: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if name, ok := moduleName(path); err == nil && ok && entry.Type().IsRegular() {
			tree.paths[name] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list kernel modules: %w", err)
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("list built-in kernel modules: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		if name, ok := moduleName(strings.TrimSpace(line)); ok {
			tree.builtin[name] = true
		}
	}
	return tree, nil
}

// moduleName returns the name in a path such as kernel/drivers/block/virtio_blk.ko.xz.
func moduleName(path string) (name string, ok bool) {
	stem, suffix, ok := strings.Cut(filepath.Base(path), ".ko")
	if suffix != "" && suffix != ".xz" && suffix != ".zst" && suffix != ".gz" {
		return "", false
	}
	return strings.ReplaceAll(stem, "-", "_"), ok
}

// load returns the named modules and all they depend on, each after its dependencies.
func (t *moduleTree) load(ctx context.Context, names ...string) ([]kernelModule, error) {
	var order []kernelModule
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if seen[name] || t.builtin[name] {
			return nil
		}
		seen[name] = true
		module, depends, err := t.read(ctx, name)
		if err != nil {
			return err
		}
		for _, dependency := range depends {
			if err := visit(dependency); err != nil {
				return err
			}
		}
		order = append(order, module)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// read unpacks one module and returns the names that its .modinfo says it depends on.
func (t *moduleTree) read(ctx context.Context, name string) (kernelModule, []string, error) {
	path, ok := t.paths[name]
	if !ok {
		return kernelModule{}, nil, fmt.Errorf("load kernel module %s: neither in the package nor built in", name)
	}
	packed, err := os.ReadFile(path)
	if err != nil {
		return kernelModule{}, nil, fmt.Errorf("load kernel module %s: %w", name, err)
	}
	body, err := decompress(ctx, packed)
	if err != nil {
		return kernelModule{}, nil, fmt.Errorf("load kernel module %s: %w", name, err)
	}
	depends, err := moduleDepends(body)
	if err != nil {
		return kernelModule{}, nil, fmt.Errorf("load kernel module %s: %w", name, err)
	}
	return kernelModule{name: name, elf: body}, depends, nil
}

// moduleDepends reads the "depends" entry of a module's .modinfo section, which is a list of NUL-ended KEY=VALUE strings.
func moduleDepends(module []byte) ([]string, error) {
	file, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo: %w", err)
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
