package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
)

// guarded is a server behind a TCP door with TLS.
type guarded struct {
	*served
	ca   *certtest.Authority
	dir  string // the server's files
	tcp  string // its address
	fail chan error
}

// guard serves exports on 127.0.0.1 with a certificate of an authority of its own.
func guard(t testing.TB, exports Exports, change func(*TLSOptions)) *guarded {
	t.Helper()
	return guardWith(t, exports, change, Options{})
}

// guardWith is guard of a server with options. It reports the handshakes that fail.
func guardWith(t testing.TB, exports Exports, change func(*TLSOptions), opts Options) *guarded {
	t.Helper()
	g := &guarded{ca: certtest.New(t, "the test's authority"), dir: shortDir(t), fail: make(chan error, 16)}
	g.ca.Store(g.dir, "server", g.ca.Server())
	o := tlsFiles(g.dir)
	o.Required = true
	if change != nil {
		change(&o)
	}
	rules, err := OpenTLS(o)
	if err != nil {
		t.Fatal(err)
	}
	opts.Events.HandshakeFailed = func(_ net.Addr, err error) { g.fail <- err }
	g.served = serveTable(t, newTable(), opts)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.tcp = l.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- g.ServeDoor(context.Background(), l, Door{Exports: exports, TLS: rules}) }()
	t.Cleanup(func() {
		_ = g.Close()
		if err := <-ended; err != nil && !errors.Is(err, block.ErrClosed) {
			t.Errorf("ServeDoor: %v", err)
		}
	})
	return g
}

// dial connects in plain text.
func (g *guarded) dial(t testing.TB) *client {
	t.Helper()
	nc, err := net.Dial("tcp", g.tcp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(2 * time.Minute))
	return newClient(t, nc)
}

// startTLS sends the option and shakes hands with a certificate, if there is one.
func (g *guarded) startTLS(c *client, certs ...tls.Certificate) error {
	c.t.Helper()
	c.sendOption(5, nil)
	if kind, text := c.optionReply(5); kind != 1 {
		c.t.Fatalf("STARTTLS refused: %#x %q", kind, text)
	}
	nc := tls.Client(c.nc, &tls.Config{RootCAs: g.ca.Pool(), ServerName: "localhost", Certificates: certs})
	if err := nc.Handshake(); err != nil {
		return err
	}
	c.goOn(nc)
	// With TLS 1.3 the client is done before the server has looked at its certificate.
	_, err := nc.Write(pack("IHAVEOPT", uint32(4711), uint32(0)))
	if err == nil {
		_, err = nc.Read(make([]byte, 20))
	}
	return err
}

// oneDisk is a table with "disk".
func oneDisk(dev Device) *table { return newTable(Export{Name: "disk", Device: dev}) }

func TestForcedTLS(t *testing.T) {
	const tlsRequired, invalid, unknown = 1<<31 + 5, 1<<31 + 3, 1<<31 + 6
	g := guard(t, oneDisk(newMemDevice(1<<20)), nil)
	c := g.dial(t)
	c.greet(3)
	for _, opt := range []struct {
		opt  uint32
		data []byte
	}{
		{3, nil}, {6, infoRequest("disk")}, {7, infoRequest("disk")}, {7, infoRequest("nosuch")}, {8, nil}, {9, metaQuery("disk")},
		{10, metaQuery("disk", "base:allocation")}, {11, nil}, {4711, nil}, {7, make([]byte, 20000)},
	} {
		c.sendOption(opt.opt, opt.data)
		if kind, _ := c.optionReply(opt.opt); kind != tlsRequired {
			t.Errorf("option %d in plain text: %#x", opt.opt, kind)
		}
	}
	c.sendOption(5, []byte("x"))
	if kind, _ := c.optionReply(5); kind != invalid {
		t.Errorf("STARTTLS with data: %#x", kind)
	}
	if err := g.startTLS(c, g.ca.Client("guest")); err != nil {
		t.Fatal(err)
	}
	c.sendOption(5, nil)
	if kind, _ := c.optionReply(5); kind != invalid {
		t.Errorf("second STARTTLS: %#x", kind)
	}
	c.sendOption(7, infoRequest("nosuch"))
	if kind, _ := c.optionReply(7); kind != unknown {
		t.Errorf("unknown export under TLS: %#x", kind)
	}
	c.sendOption(7, infoRequest("disk"))
	for kind := uint32(3); kind != 1; {
		kind, _ = c.optionReply(7)
	}
	for _, n := range []int{1, 4096, 300 << 10, 5 << 20 / 8} {
		data := bytes.Repeat([]byte{byte(n + 7)}, n)
		c.send(header(0, 1, 1, 3, uint32(n)), data, header(0, 1, 3, 3, 1), data[:1])
		c.expect(1, 0)
		c.expect(3, 0)
		c.send(header(0, 0, 2, 3, uint32(n)))
		c.expect(2, 0)
		if !bytes.Equal(c.recv(n), data) {
			t.Errorf("%d bytes do not come back", n)
		}
	}
	c.send(header(0, 2, 0, 0, 0))
	if n, err := c.nc.Read(make([]byte, 1)); n != 0 || err == nil || err.Error() != "EOF" {
		t.Errorf("after DISC: %d bytes, %v; want TLS to be closed in order", n, err)
	}
}

// TestPlainTextOnForcedDoor: what has no answer to give is hung up on, and nothing was served.
func TestPlainTextOnForcedDoor(t *testing.T) {
	tab := oneDisk(newMemDevice(1 << 20))
	g := guard(t, tab, nil)
	for name, bytes := range map[string][]byte{
		"export name":            pack(uint32(3), "IHAVEOPT", uint32(1), uint32(4), "disk"),
		"not fixed newstyle":     pack(uint32(0), "IHAVEOPT", uint32(1), uint32(4), "disk"),
		"STARTTLS without fixed": pack(uint32(2), "IHAVEOPT", uint32(5), uint32(0)),
	} {
		t.Run(name, func(t *testing.T) {
			c := g.dial(t)
			c.recv(18)
			c.send(bytes)
			c.closed()
		})
	}
	c := g.dial(t) // ABORT is answered
	c.greet(3)
	c.sendOption(2, nil)
	if kind, _ := c.optionReply(2); kind != 1 {
		t.Errorf("ABORT: %#x", kind)
	}
	// Requests in plain text where the TLS handshake belongs, sent ahead as an attacker on the wire might.
	c = g.dial(t)
	c.greet(3)
	c.send("IHAVEOPT", uint32(5), uint32(0), "IHAVEOPT", uint32(7), uint32(10), infoRequest("disk"))
	if kind, _ := c.optionReply(5); kind != 1 {
		t.Fatalf("STARTTLS: %#x", kind)
	}
	rest := make([]byte, 64)
	if n, _ := c.nc.Read(rest); n > 7 { // at most a TLS alert
		t.Errorf("injected option was answered: % x", rest[:n])
	}
	if n := tab.heldOf("disk"); n != 0 {
		t.Errorf("export held %d times", n)
	}
}

func TestClientCertificates(t *testing.T) {
	g := guard(t, oneDisk(newMemDevice(1<<20)), nil)
	other := certtest.New(t, "somebody else")
	for _, tc := range []struct {
		name  string
		certs []tls.Certificate
		ok    bool
	}{
		{"good", []tls.Certificate{g.ca.Client("guest")}, true},
		{"none", nil, false},
		{"of another authority", []tls.Certificate{other.Client("guest")}, false},
		{"expired", []tls.Certificate{g.ca.Issue("guest", x509.ExtKeyUsageClientAuth, -time.Hour)}, false},
		{"of a server", []tls.Certificate{g.ca.Server()}, false},
	} {
		c := g.dial(t)
		c.greet(3)
		if err := g.startTLS(c, tc.certs...); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
		if tc.ok {
			continue
		}
		select {
		case err := <-g.fail:
			if !strings.Contains(err.Error(), "TLS") {
				t.Errorf("%s: reported as %v", tc.name, err)
			}
		case <-time.After(2 * time.Minute):
			t.Errorf("%s: not reported", tc.name)
		}
	}
}

// TestOldTLSIsRefused: the server insists on 1.2, which a man in the middle cannot talk it out of.
func TestOldTLSIsRefused(t *testing.T) {
	g := guard(t, oneDisk(newMemDevice(1<<20)), func(o *TLSOptions) { o.ClientCAFile = "" })
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c := g.dial(t)
		c.greet(3)
		c.sendOption(5, nil)
		c.optionReply(5)
		err := tls.Client(c.nc, &tls.Config{RootCAs: g.ca.Pool(), ServerName: "localhost", MinVersion: version, MaxVersion: version}).Handshake()
		if (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

// TestStartTLSForgets: whatever was agreed on in plain text is void afterwards.
func TestStartTLSForgets(t *testing.T) {
	optional := func(o *TLSOptions) { o.Required, o.ClientCAFile = false, "" }
	for _, opt := range []uint32{8, 11} {
		g := guard(t, oneDisk(newMemDevice(1<<20)), optional)
		c := g.dial(t)
		c.greet(3)
		c.sendOption(opt, nil)
		c.optionReply(opt)
		c.metaContexts(10, "disk", ContextAllocation)
		if err := g.startTLS(c); err != nil {
			t.Fatal(err)
		}
		c.sendOption(7, infoRequest("disk"))
		for kind := uint32(3); kind != 1; {
			kind, _ = c.optionReply(7)
		}
		c.send(header(0, 7, 1, 0, 512), header(0, 0, 2, 0, 16)) // compact headers, simple replies, no contexts
		c.expect(1, einval)
		c.expect(2, 0)
		c.recv(16)
	}
	g := guard(t, oneDisk(newMemDevice(1<<20)), optional) // and what is agreed on under TLS holds
	c := g.dial(t)
	c.greet(3)
	if err := g.startTLS(c); err != nil {
		t.Fatal(err)
	}
	c.sendOption(8, nil)
	c.optionReply(8)
	ids, _ := c.metaContexts(10, "disk", ContextAllocation)
	c.sendOption(7, infoRequest("disk"))
	for kind := uint32(3); kind != 1; {
		kind, _ = c.optionReply(7)
	}
	c.send(header(0, 7, 1, 0, 512))
	if got := c.statuses(1); len(got[ids[ContextAllocation]]) != 1 {
		t.Errorf("status under TLS: %v", got)
	}
}

// tenants gives each client its own disk, by the name in its certificate, and plain text only what is public.
type tenants struct{ *table }

func (e tenants) AcquireFor(client Client, name string) (Export, func(), error) {
	switch {
	case name == "public":
	case !client.Encrypted:
		return Export{}, nil, fmt.Errorf("export %q: %w", name, ErrTLSRequired)
	case client.Identity() == "" || name != "disk-of-"+client.Identity():
		return Export{}, nil, fmt.Errorf("export %q: %w", name, block.ErrNotFound)
	}
	return e.Acquire(name)
}

func (e tenants) ListFor(client Client) []Export {
	var mine []Export
	for _, x := range e.List() {
		if x.Name == "public" || client.Identity() != "" && x.Name == "disk-of-"+client.Identity() {
			mine = append(mine, x)
		}
	}
	return mine
}

func TestCertificatesMapToExports(t *testing.T) {
	const unknown, tlsRequired, policy = 1<<31 + 6, 1<<31 + 5, 1<<31 + 2
	dev := newMemDevice(1 << 20)
	tab := newTable(Export{Name: "public", Device: dev}, Export{Name: "disk-of-alice", Device: dev}, Export{Name: "disk-of-bob", Device: dev})
	g := guard(t, tenants{tab}, func(o *TLSOptions) { o.Required = false })
	answer := func(c *client, name string) uint32 {
		c.sendOption(6, infoRequest(name))
		for {
			if kind, _ := c.optionReply(6); kind != 3 {
				return kind
			}
		}
	}
	for _, who := range []struct {
		name               string
		public, alice, bob uint32
		listed             int
	}{
		{"alice", 1, 1, unknown, 2}, {"bob", 1, unknown, 1, 2}, {"eve", 1, unknown, unknown, 1}, {"", 1, tlsRequired, tlsRequired, 1},
	} {
		c := g.dial(t)
		c.greet(3)
		if who.name != "" {
			if err := g.startTLS(c, g.ca.Client(who.name)); err != nil {
				t.Fatal(err)
			}
		}
		for name, want := range map[string]uint32{"public": who.public, "disk-of-alice": who.alice, "disk-of-bob": who.bob} {
			if got := answer(c, name); got != want {
				t.Errorf("%q asks for %s: %#x, want %#x", who.name, name, got, want)
			}
		}
		c.sendOption(3, nil)
		listed := 0
		for kind, _ := c.optionReply(3); kind != 1; kind, _ = c.optionReply(3) {
			listed++
		}
		if listed != who.listed {
			t.Errorf("%q sees %d exports, want %d", who.name, listed, who.listed)
		}
	}
	c := g.dial(t) // the answer "TLS required" is for INFO and GO only
	c.greet(3)
	c.sendOption(9, metaQuery("disk-of-bob"))
	if kind, _ := c.optionReply(9); kind != policy {
		t.Errorf("contexts of an export that wants TLS: %#x", kind)
	}
	c.sendOption(1, []byte("disk-of-bob"))
	c.closed()
	connected := g.Connections("disk-of-bob")
	if connected != 0 {
		t.Errorf("%d connections", connected)
	}
}

func TestCertificatesAreReloaded(t *testing.T) {
	failed := make(chan error, 16)
	g := guard(t, oneDisk(newMemDevice(1<<20)), func(o *TLSOptions) { o.ReloadFailed = func(err error) { failed <- err } })
	serial := func() string {
		c := g.dial(t)
		c.greet(3)
		if err := g.startTLS(c, g.ca.Client("guest")); err != nil {
			t.Fatal(err)
		}
		return c.nc.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	if again := serial(); again != first {
		t.Errorf("certificate %s became %s by itself", first, again)
	}
	g.ca.Store(g.dir, "server", g.ca.Server())
	second := serial()
	if second == first {
		t.Error("a renewed certificate is not used")
	}
	if err := os.WriteFile(filepath.Join(g.dir, "server-cert.pem"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if serial() != second {
			t.Error("a broken file took the old certificate away")
		}
	}
	if err := <-failed; !errors.Is(err, block.ErrInvalid) || len(failed) != 0 {
		t.Errorf("reported: %v, and %d more", err, len(failed))
	}
	old := g.ca
	g.ca = certtest.New(t, "the next authority")
	g.ca.Store(g.dir, "server", g.ca.Server())
	serial()
	c := g.dial(t)
	c.greet(3)
	if err := g.startTLS(c, old.Client("guest")); err == nil {
		t.Error("a certificate of the authority before was accepted")
	}
}

func TestPlainLoopback(t *testing.T) {
	g := guard(t, oneDisk(newMemDevice(1<<20)), func(o *TLSOptions) { o.PlainLoopback = true })
	c := g.dial(t)
	c.greet(3)
	c.sendOption(6, infoRequest("disk"))
	if kind, _ := c.optionReply(6); kind != 3 {
		t.Errorf("INFO in plain text over loopback: %#x", kind)
	}
	rules := g.tlsRules(t)
	if !rules.requiredOf(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}) || !rules.requiredOf(&net.UnixAddr{}) {
		t.Error("others than loopback are let in")
	}
}

func (g *guarded) tlsRules(t testing.TB) *TLS {
	o := tlsFiles(g.dir)
	o.Required, o.PlainLoopback = true, true
	rules, err := OpenTLS(o)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func TestOpenTLSErrors(t *testing.T) {
	dir := shortDir(t)
	ca := certtest.New(t, "authority")
	ca.Store(dir, "server", ca.Server())
	for name, tc := range map[string]struct {
		change func(*TLSOptions)
		want   error
	}{
		"no certificate":        {func(o *TLSOptions) { o.CertFile = filepath.Join(dir, "nosuch") }, os.ErrNotExist},
		"no authorities":        {func(o *TLSOptions) { o.ClientCAFile = filepath.Join(dir, "nosuch") }, os.ErrNotExist},
		"key of something else": {func(o *TLSOptions) { o.CertFile = o.ClientCAFile }, block.ErrInvalid},
		"authorities are a key": {func(o *TLSOptions) { o.ClientCAFile = o.KeyFile }, block.ErrInvalid},
	} {
		o := tlsFiles(dir)
		tc.change(&o)
		if _, err := OpenTLS(o); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestShutdownUnderTLS: a drained client is told that TLS ends.
func TestShutdownUnderTLS(t *testing.T) {
	g := guard(t, oneDisk(newMemDevice(1<<20)), nil)
	c := g.dial(t)
	c.greet(3)
	if err := g.startTLS(c, g.ca.Client("guest")); err != nil {
		t.Fatal(err)
	}
	c.sendOption(7, infoRequest("disk"))
	for kind := uint32(3); kind != 1; {
		kind, _ = c.optionReply(7)
	}
	done := make(chan error, 1)
	go func() { done <- g.Shutdown(context.Background()) }()
	if n, err := c.nc.Read(make([]byte, 1)); n != 0 || err == nil || err.Error() != "EOF" {
		t.Errorf("%d bytes, %v", n, err)
	}
	_ = c.nc.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
