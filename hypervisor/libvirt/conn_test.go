package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Which places URIs mean.
func TestFind(t *testing.T) {
	env := func(pairs map[string]string) func(string) string {
		return func(name string) string { return pairs[name] }
	}
	for _, c := range []struct {
		uri  string
		env  map[string]string
		want string // first socket; "": refused
	}{
		{"qemu:///system", nil, "/run/libvirt/virtqemud-sock"},
		{"", map[string]string{"LIBVIRT_DEFAULT_URI": "qemu:///system?socket=/x"}, "/x"},
		{"qemu:///session", map[string]string{"XDG_RUNTIME_DIR": "/r"}, "/r/libvirt/virtqemud-sock"},
		{"qemu+unix:///session?socket=/y", nil, "/y"},
		{"qemu+ssh://far/system", nil, ""},
		{"qemu://far/system", nil, ""},
		{"xen:///system", nil, ""},
		{"qemu:///embed", nil, ""},
		{"%", nil, ""},
	} {
		p, err := Find(c.uri, env(c.env))
		if c.want == "" {
			if !errors.Is(err, block.ErrInvalid) {
				t.Errorf("%q is %+v, %v", c.uri, p, err)
			}
			continue
		}
		if err != nil || p.Sockets[0] != c.want {
			t.Errorf("%q is %+v, %v", c.uri, p, err)
		}
	}
	p, err := Find("qemu:///session", env(map[string]string{"XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d", "XDG_RUNTIME_DIR": "/r"}))
	if err != nil || p.NVRAMDir() != "/c/libvirt/qemu/nvram" || p.TPMDir() != "/c/libvirt/qemu/swtpm" || p.ImagesDir() != "/d/libvirt/images" {
		t.Errorf("%+v, %v", p, err)
	}
}

// serve takes connections at a socket.
func serve(t *testing.T, each func(net.Conn)) Place {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				each(c)
				_ = c.Close()
			}()
		}
	}()
	return Place{URI: "qemu:///session", Sockets: []string{filepath.Join(t.TempDir(), "nobody"), path}}
}

// What is no libvirtd, or one that has gone mad, ends with an error and in time.
func TestHostileLibvirt(t *testing.T) {
	say := func(bytes ...byte) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 28))
			_, _ = c.Write(bytes)
		}
	}
	header := func(length, serial uint32) []byte {
		b := make([]byte, 28)
		for i, v := range []uint32{length, 0x20008086, 1, 66, 1, serial, 0} {
			binary.BigEndian.PutUint32(b[4*i:], v)
		}
		return b
	}
	for name, each := range map[string]func(net.Conn){
		"it hangs up":             func(net.Conn) {},
		"a length of nothing":     say(0, 0, 0, 0),
		"a length below a header": say(0, 0, 0, 27),
		"a length of gigabytes":   say(0xff, 0xff, 0xff, 0xff),
		"a cut header":            say(0, 0, 0, 28, 1, 2),
		"another's answer":        say(header(28, 77)...),
		"an answer of nothing":    say(header(28, 1)...),
		"an answer that is cut":   say(header(1000, 1)...),
		"noise":                   func(c net.Conn) { _, _ = io.CopyN(c, zeroes{}, 1<<20) },
		"silence":                 func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		began := time.Now()
		c, err := Open(ctx, serve(t, each))
		if cancel(); err == nil {
			t.Errorf("%s: it is taken for libvirtd", name)
			_ = c.Close()
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: it takes %v", name, took)
		}
	}
	if _, err := Open(t.Context(), Place{Sockets: []string{"/nonexistent/a", "/nonexistent/b"}}); err == nil || !strings.Contains(err.Error(), "/nonexistent/b") {
		t.Errorf("nobody there: %v", err)
	}
}

type zeroes struct{}

// Read implements io.Reader.
func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
