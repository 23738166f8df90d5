package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeKernel has the devices nbd0, which is in use, and nbd1, and a nbd-client that writes down what it is asked for. What a real one makes of that, only a kernel with
// the module can tell.
func fakeKernel(t *testing.T) (k kernelNBD, asked func() string) {
	t.Helper()
	root := t.TempDir()
	k = kernelNBD{filepath.Join(root, "dev"), filepath.Join(root, "sys")}
	for _, dir := range []string{"dev", "sys/nbd0", "sys/nbd1", "bin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\necho \"$@\" >>" + root + "/asked\ncase \"$*\" in *broken*) echo no such export; exit 1;; esac\n"
	for name, text := range map[string]string{"sys/nbd0/pid": "1\n", "bin/nbd-client": script} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", filepath.Join(root, "bin")+":"+os.Getenv("PATH"))
	return k, func() string {
		text, _ := os.ReadFile(filepath.Join(root, "asked"))
		_ = os.Remove(filepath.Join(root, "asked"))
		return strings.TrimSpace(string(text))
	}
}

func TestMapUsesAFreeDevice(t *testing.T) {
	d := startDaemon(t)
	for _, name := range []string{"web1", "broken"} {
		d.must("volume", "create", name, "--size", "1MiB")
		d.must("volume", "attach", name)
	}
	k, asked := fakeKernel(t)
	var out, errs bytes.Buffer
	a := newApp(nil, &out, &errs, func(name string) string { return map[string]string{"HV_ENDPOINT": d.endpoint}[name] })
	nbd0, nbd1 := filepath.Join(k.dev, "nbd0"), filepath.Join(k.dev, "nbd1")
	if err := a.mapVolume(t.Context(), k, "web1", ""); err != nil {
		t.Fatal(err)
	}
	if got, want := asked(), "-unix "+d.dir+"/nbd.sock "+nbd1+" -name web1 -block-size 512 -persist"; got != want || out.String() != nbd1+"\n" {
		t.Errorf("nbd-client was asked %q, want %q; printed %q", got, want, out.String())
	}
	if err := a.mapVolume(t.Context(), k, "web1", nbd0); !errors.Is(err, errRefused) || asked() != "" {
		t.Errorf("a device in use: %v", err)
	}
	if err := a.mapVolume(t.Context(), k, "broken", ""); err == nil || !strings.Contains(err.Error(), "no such export") {
		t.Errorf("a nbd-client that fails: %v", err)
	}
	asked()
	if err := a.unmap(t.Context(), k, nbd0); err != nil || asked() != "-disconnect "+nbd0 {
		t.Errorf("unmap: %v", err)
	}
	for _, device := range []string{nbd1, filepath.Join(k.dev, "nbd7"), "/dev/sda", filepath.Join(k.dev, "nbd0p1"), "nbd0"} {
		if err := a.unmap(t.Context(), k, device); err == nil || asked() != "" {
			t.Errorf("unmap %s: %v", device, err)
		}
	}
}

// Where the kernel has no such devices, the refusal says what is missing and what does the same.
func TestMapWithoutTheModuleIsRefused(t *testing.T) {
	k := kernelNBD{"/dev", t.TempDir()}
	if err := k.check("nbd+unix:///v?socket=/s"); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "modprobe nbd") || !strings.Contains(err.Error(), "nbdfuse FILE 'nbd+unix:///v?socket=/s'") {
		t.Errorf("got %v", err)
	}
	a := newApp(nil, nil, nil, nil)
	if err := a.unmap(t.Context(), k, "/dev/nbd0"); !errors.Is(err, errRefused) {
		t.Errorf("unmap: %v", err)
	}
}
