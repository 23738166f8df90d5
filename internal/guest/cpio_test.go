package guest

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCPIOIsReadByBusybox lists and unpacks an archive with an independent implementation.
func TestCPIOIsReadByBusybox(t *testing.T) {
	requirePrograms(t, "busybox")
	var archive bytes.Buffer
	w := newCPIOWriter(&archive)
	w.dir("d")
	bodies := map[string]string{}
	// Every length of name and body modulo 4, since padding is what goes wrong in this format.
	for i := range 8 {
		name := "d/" + strings.Repeat("n", i+1)
		bodies[name] = strings.Repeat("b", i)
		w.file(name, 0o640, []byte(bodies[name]))
	}
	w.link("d/link", "target")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	unpack := exec.Command("busybox", "cpio", "-idmv")
	unpack.Dir, unpack.Stdin = dir, &archive
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("busybox cpio: %v: %s", err, out)
	}
	for name, want := range bodies {
		out, err := exec.Command("stat", "-c", "%a", filepath.Join(dir, name)).Output()
		if err != nil || strings.TrimSpace(string(out)) != "640" {
			t.Errorf("%s: mode %s, %v", name, out, err)
		}
		if got := readFile(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if out, err := exec.Command("readlink", filepath.Join(dir, "d/link")).Output(); err != nil || string(out) != "target\n" {
		t.Errorf("link: %q, %v", out, err)
	}
}

// TestCPIOBytes pins the format: a device node, a file and the end.
func TestCPIOBytes(t *testing.T) {
	var archive bytes.Buffer
	w := newCPIOWriter(&archive)
	w.charDev("c", 5, 1)
	w.file("f", 0o644, []byte("hello"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	zero := "00000000"
	want := "070701" + "00000001" + "00002180" + zero + zero + "00000001" + zero + zero + zero + zero + "00000005" + "00000001" + "00000002" + zero + "c\x00" +
		"070701" + "00000002" + "000081A4" + zero + zero + "00000001" + zero + "00000005" + zero + zero + zero + zero + "00000002" + zero + "f\x00" + "hello\x00\x00\x00" +
		"070701" + "00000003" + zero + zero + zero + "00000001" + zero + zero + zero + zero + zero + zero + "0000000B" + zero + "TRAILER!!!\x00\x00\x00\x00"
	if archive.String() != want {
		t.Errorf("got\n%q, want\n%q", archive.String(), want)
	}
}
