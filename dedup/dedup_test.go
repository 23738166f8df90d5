package dedup_test

import (
	"bytes"
	"compress/flate"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

func testKey(tb testing.TB) dedup.DomainKey {
	tb.Helper()
	key, err := dedup.DomainKeyFromBytes(bytes.Repeat([]byte{7, 9}, 16))
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func sizeName(n int) string { return fmt.Sprintf("%dKiB", n>>10) }

// The identity of bytes under a key is part of every store that exists.
func TestHashIsGolden(t *testing.T) {
	h := dedup.NewHasher(testKey(t))
	golden := map[int]string{
		0:     "2204e6f49772837522aba741836c0d122d29d5990a5031b2c3651539285278e9",
		1000:  "5aac843dafe33d64cced46eec4e845d94fe902094261c8061856056d1bc74b7e",
		20000: "a720539eaed53063484ea603f9edb765c2d162b26a34bd536cfa34a78db5f7c4"}
	for n, want := range golden {
		if got := h.Sum(bytes.Repeat([]byte{0xa5}, n)).String(); got != want {
			t.Errorf("hash of %d B = %s, want %s", n, got, want)
		}
	}
	k, err := blake3.NewKeyed(testKey(t).Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 64, 1024, 1025, 8192, 8193, 20000, 70000} {
		p := randomBytes(uint64(n), n)
		k.Reset()
		k.Write(p)
		if got, want := h.Sum(p), k.Sum(nil); !bytes.Equal(got[:], want) {
			t.Errorf("hash of %d B = %v, want %x", n, got, want)
		}
	}
}

func TestHasherDoesNotAllocate(t *testing.T) {
	h, p := dedup.NewHasher(testKey(t)), randomBytes(1, 16<<10)
	if n := testing.AllocsPerRun(100, func() { h.Sum(p) }); n != 0 {
		t.Errorf("%v allocations per Sum", n)
	}
}

func TestDifferentDomainsDifferentIDs(t *testing.T) {
	a := testKey(t)
	b, err := dedup.NewDomainKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := []byte("the same bytes")
	if dedup.NewHasher(a).Sum(p) == dedup.NewHasher(b).Sum(p) {
		t.Error("two domains give one identity")
	}
	if a.ID() == b.ID() || a.ID() != testKey(t).ID() {
		t.Error("domain id does not follow the key")
	}
}

func TestDomainKeyNeverPrinted(t *testing.T) {
	key := testKey(t)
	secret := hex.EncodeToString(key.Bytes())
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", key, struct{ K *dedup.DomainKey }{&key})
		fmt.Fprintf(&out, verb+"\n", []dedup.DomainKey{key})
	}
	j, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "key", key)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "key", &key)
	text := strings.ToLower(out.String())
	for _, leak := range []string{secret[:16], "7 9 7 9", "7,9,7,9", "0x7, 0x9", `\a\t`} {
		if strings.Contains(text, leak) {
			t.Errorf("the key shows as %q in:\n%s", leak, text)
		}
	}
	if !strings.Contains(text, key.ID().String()) {
		t.Error("the domain id does not show")
	}
}

func TestDomainKeyFromBytesRefuses(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 31), make([]byte, 33), make([]byte, 32)} {
		if _, err := dedup.DomainKeyFromBytes(b); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%d B of zeroes: %v", len(b), err)
		}
	}
	if _, err := dedup.NewDomainKey(strings.NewReader("short")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a source that ends early: %v", err)
	}
}

func TestIsZeroFindsEachByte(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 15, 16, 17, 63, 512, 4096, 4099} {
		p := make([]byte, n)
		if !dedup.IsZero(p) {
			t.Errorf("%d zeroes are not zero", n)
		}
		for i := range p {
			p[i] = 1
			if dedup.IsZero(p) {
				t.Errorf("%d B with byte %d set are zero", n, i)
			}
			p[i] = 0
		}
	}
	if dedup.IsZero(bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, 8}, 512)) {
		t.Error("a pattern of eight bytes is zero")
	}
}

// The probe must leave alone what compresses, and save the work on what does not.
func TestProbeRates(t *testing.T) {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Skipf("this test's own program, its sample of machine code, cannot be read: %v", err)
	}
	program = program[:min(len(program), 4<<20)]
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var deflated bytes.Buffer
	fw, _ := flate.NewWriter(&deflated, 6)
	fw.Write(program)
	fw.Close()
	for _, c := range []struct {
		name     string
		p        []byte
		min, max float64 // share called incompressible
	}{
		{"zeroes", make([]byte, 1<<20), 0, 0},
		{"text", []byte(strings.Repeat("the quick brown fox jumps over the lazy dog. ", 1<<15)), 0, 0},
		{"hexadecimal", []byte(hex.EncodeToString(randomBytes(3, 1<<19))), 0, 0},
		{"machine code", program, 0, 0.02},
		{"random", randomBytes(4, 1<<20), 0.95, 1},
		{"zstd", z.EncodeAll(program, nil), 0.7, 1},
		{"deflate", deflated.Bytes(), 0.7, 1},
	} {
		n, called := 0, 0
		for ; len(c.p) >= 16<<10; c.p = c.p[16<<10:] {
			n++
			if dedup.Incompressible(c.p[:16<<10]) {
				called++
			}
		}
		if share := float64(called) / float64(n); share < c.min || share > c.max {
			t.Errorf("%s: %d of %d pieces called incompressible, want %v to %v of them", c.name, called, n, c.min, c.max)
		}
	}
	if dedup.Incompressible(randomBytes(5, 1000)) {
		t.Error("a piece shorter than the sample was judged")
	}
}
