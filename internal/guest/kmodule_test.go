package guest

import (
	"path/filepath"
	"slices"
	"testing"
)

func TestModuleName(t *testing.T) {
	for path, want := range map[string]string{
		"kernel/drivers/block/virtio_blk.ko":                "virtio_blk",
		"/x/kernel/drivers/char/hw_random/virtio-rng.ko.xz": "virtio_rng",
		"a.ko.zst":       "a",
		"a.ko.gz":        "a",
		"a.ko.bak":       "",
		"modules.order":  "",
		"directory/a.so": "",
	} {
		name, ok := moduleName(path)
		if name != want && ok || ok != (want != "") {
			t.Errorf("%s: got %q, %v; want %q", path, name, ok, want)
		}
	}
}

// TestModulesComeAfterTheirDependencies reads the real kernel's modules. virtio_net needs two that no one would guess.
func TestModulesComeAfterTheirDependencies(t *testing.T) {
	image := testImage(t)
	tree, err := openModuleTree(filepath.Join(filepath.Dir(image.Kernel), "modules"))
	if err != nil {
		t.Fatal(err)
	}
	modules, err := tree.load(t.Context(), "virtio_blk", "virtio_net")
	if err != nil {
		t.Fatal(err)
	}
	var loaded []string
	for _, module := range modules {
		depends, err := moduleDepends(module.elf)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range depends {
			if !slices.Contains(loaded, name) && !tree.builtin[name] {
				t.Errorf("%s is loaded before %s, which it needs", module.name, name)
			}
		}
		if slices.Contains(loaded, module.name) {
			t.Errorf("%s is loaded twice", module.name)
		}
		loaded = append(loaded, module.name)
	}
	for _, want := range []string{"virtio_blk", "failover", "net_failover", "virtio_net"} {
		if !slices.Contains(loaded, want) && !tree.builtin[want] {
			t.Errorf("%s is missing in %v", want, loaded)
		}
	}
	if _, err := tree.load(t.Context(), "no_such_module"); err == nil {
		t.Error("a module that does not exist was loaded")
	}
}
