package guest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// fakeKernel is an ELF magic and enough text to span several blocks of each format.
func fakeKernel() []byte {
	return append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel text, "), 400_000)...)
}

// bzImage wraps a payload as the kernel's build does; size is the trailer, or negative for none.
func bzImage(payload []byte, size int) []byte {
	const setupSectors = 3
	image := make([]byte, (setupSectors+1)*bootSectorSize+64)
	image[bootSetupSectors] = setupSectors
	copy(image[bootHeaderMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[bootVersion:], 0x020f)
	binary.LittleEndian.PutUint32(image[bootPayloadOffset:], 64)
	if size >= 0 {
		payload = binary.LittleEndian.AppendUint32(bytes.Clone(payload), uint32(size))
	}
	binary.LittleEndian.PutUint32(image[bootPayloadLength:], uint32(len(payload)))
	return append(append(image, payload...), "signature"...)
}

func TestExtractVmlinux(t *testing.T) {
	kernel := fakeKernel()
	for name, pack := range map[string]func(w io.Writer) io.WriteCloser{
		"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w, zstd.WithWindowSize(8<<20))
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
		"lz4": func(w io.Writer) io.WriteCloser {
			z := lz4.NewWriter(w)
			if err := z.Apply(lz4.LegacyOption(true)); err != nil {
				t.Fatal(err)
			}
			return z
		},
	} {
		t.Run(name, func(t *testing.T) {
			var packed bytes.Buffer
			w := pack(&packed)
			if _, err := w.Write(kernel); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			size := len(kernel)
			if name == "gzip" {
				size = -1 // the one format with a size of its own
			}
			got, err := extractVmlinux(t.Context(), bzImage(packed.Bytes(), size))
			if err != nil || !bytes.Equal(got, kernel) {
				t.Errorf("got %d bytes, %v; want %d", len(got), err, len(kernel))
			}
			if _, err := extractVmlinux(t.Context(), bzImage(packed.Bytes()[:packed.Len()/2], size)); err == nil {
				t.Error("a payload cut in half was taken")
			}
		})
	}
}

// TestExtractVmlinuxXz uses the real xz with the x86 filter and the check that kernels are built with.
func TestExtractVmlinuxXz(t *testing.T) {
	requirePrograms(t, "xz")
	kernel := fakeKernel()
	cmd := exec.Command("xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c")
	cmd.Stdin = bytes.NewReader(kernel)
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got, err := extractVmlinux(t.Context(), bzImage(packed, len(kernel)))
	if err != nil || !bytes.Equal(got, kernel) {
		t.Errorf("got %d bytes, %v; want %d", len(got), err, len(kernel))
	}
}

func TestExtractVmlinuxRefuses(t *testing.T) {
	kernel := fakeKernel()
	far := bzImage(kernel, -1)
	binary.LittleEndian.PutUint32(far[bootPayloadOffset:], 1<<31)
	old := bzImage(kernel, -1)
	binary.LittleEndian.PutUint16(old[bootVersion:], 0x0207)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte("no kernel")); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"empty":              {nil, "no x86 boot header"},
		"text":               {bytes.Repeat([]byte("x"), 4096), "no x86 boot header"},
		"old protocol":       {old, "too old"},
		"payload outside":    {far, "outside the file"},
		"unknown packing":    {bzImage([]byte("????????"), 8), "unknown format"},
		"payload not an ELF": {bzImage(packed.Bytes(), -1), "not an ELF"},
	} {
		if _, err := extractVmlinux(t.Context(), c.image); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want %q, got %v", name, c.want, err)
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
