package nbd

import (
	"crypto/x509"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
)

// wallet is a folder with what a client needs.
func wallet(t *testing.T, g *guarded, change func(dir string)) string {
	t.Helper()
	dir := shortDir(t)
	g.ca.Store(dir, "client", g.ca.Client("guest"))
	if change != nil {
		change(dir)
	}
	return dir
}

func (g *guarded) uriTLS(dir string) string {
	return "nbds://" + g.tcp + "/disk?tls-certificates=" + dir
}

// qemuTLS are the arguments with which QEMU's tools open the export.
func (g *guarded) qemuTLS(dir string) []string {
	host, port, _ := net.SplitHostPort(g.tcp)
	return []string{
		"--object", "tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir=" + dir,
		"--image-opts", "driver=nbd,server.type=inet,server.host=" + host + ",server.port=" + port + ",export=disk,tls-creds=tls0",
	}
}

// TestRealClientsOverTLS moves data both ways with a client's certificate on a door that insists on it.
func TestRealClientsOverTLS(t *testing.T) {
	dev := newMemDevice(24 << 20)
	file := image(t, dev)
	g := guard(t, oneDisk(dev), nil)
	dir := wallet(t, g, nil)
	if out := tool(t, "nbdinfo", g.uriTLS(dir)); !strings.Contains(out, "with TLS") || !strings.Contains(out, "base:allocation") {
		t.Errorf("nbdinfo: %s", out)
	}
	out := filepath.Join(t.TempDir(), "out.raw")
	tool(t, "nbdcopy", "--connections=4", g.uriTLS(dir), out)
	mustEqualFiles(t, file, out)
	dev.fill(func(int) byte { return 0xff })
	tool(t, "nbdcopy", "--connections=4", "--flush", file, g.uriTLS(dir))
	qcow := filepath.Join(t.TempDir(), "out.qcow2")
	tool(t, "qemu-img", append([]string{"convert", "-O", "qcow2"}, append(g.qemuTLS(dir), qcow)...)...)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", file, qcow)
	args := append([]string{"-c", "write -P 0x5a 1000 300000", "-c", "read -P 0x5a 1000 300000", "-c", "discard 8M 4M", "-c", "flush"}, g.qemuTLS(dir)...)
	if got := tool(t, "qemu-io", args...); strings.Contains(got, "failed") || strings.Contains(got, "rror") {
		t.Errorf("qemu-io: %s", got)
	}
}

// TestRealClientsThatMayNot are turned away before an export is opened.
func TestRealClientsThatMayNot(t *testing.T) {
	tab := oneDisk(newMemDevice(1 << 20))
	g := guard(t, tab, nil)
	other := certtest.New(t, "somebody else")
	for name, dir := range map[string]string{
		"client of another authority": wallet(t, g, func(dir string) { g.ca.Store(dir, "client", other.Client("guest")) }),
		"expired client": wallet(t, g, func(dir string) {
			g.ca.Store(dir, "client", g.ca.Issue("guest", x509.ExtKeyUsageClientAuth, -time.Hour))
		}),
		"server of an unknown authority": wallet(t, g, func(dir string) { other.Store(dir, "client", g.ca.Client("guest")) }),
	} {
		if out, err := tryTool(t, "nbdinfo", g.uriTLS(dir)); err == nil {
			t.Errorf("%s: nbdinfo succeeds: %s", name, out)
		}
		if out, err := tryTool(t, "qemu-img", append([]string{"info"}, g.qemuTLS(dir)...)...); err == nil {
			t.Errorf("%s: qemu-img succeeds: %s", name, out)
		}
	}
	plain := "nbd://" + g.tcp + "/disk"
	if out, err := tryTool(t, "nbdinfo", plain); err == nil {
		t.Errorf("plain text: nbdinfo succeeds: %s", out)
	}
	if out, err := tryTool(t, "qemu-img", "info", plain); err == nil || !strings.Contains(out, "TLS") {
		t.Errorf("plain text: qemu-img: %v, %s", err, out)
	}
	g.ca.Store(g.dir, "server", g.ca.Issue("server", x509.ExtKeyUsageServerAuth, -time.Hour))
	if out, err := tryTool(t, "nbdinfo", g.uriTLS(wallet(t, g, nil))); err == nil {
		t.Errorf("expired server: nbdinfo succeeds: %s", out)
	}
	if n := tab.heldOf("disk"); n != 0 {
		t.Errorf("export held %d times", n)
	}
	if n := g.Stats().Read.Requests; n != 0 {
		t.Errorf("%d reads were served", n)
	}
}

// TestRealClientsMayChoose: where TLS is offered and not required, both ways work; a client that insists on it does not get less.
func TestRealClientsMayChoose(t *testing.T) {
	g := guard(t, oneDisk(newMemDevice(1<<20)), func(o *TLSOptions) { o.Required = false })
	dir := wallet(t, g, nil)
	if out := tool(t, "nbdinfo", "nbd://"+g.tcp+"/disk"); !strings.Contains(out, "without TLS") {
		t.Errorf("plain text: %s", out)
	}
	if out := tool(t, "nbdinfo", g.uriTLS(dir)); !strings.Contains(out, "with TLS") {
		t.Errorf("TLS: %s", out)
	}
	// A door without TLS, as a man in the middle would show it: the client must not fall back.
	s := serveDevice(t, newMemDevice(1<<20), Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(t.Context(), l) }()
	if out, err := tryTool(t, "nbdinfo", "nbds://"+l.Addr().String()+"/disk?tls-certificates="+dir); err == nil {
		t.Errorf("downgrade: nbdinfo succeeds: %s", out)
	}
}
