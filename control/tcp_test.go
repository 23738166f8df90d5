package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// withTLS makes a certificate that is its own authority, and a configuration that uses it.
func withTLS(t *testing.T, cfg *config.Loaded) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert := filepath.Join(dir, "cert.pem")
	cfg.NBD.TLS = config.TLS{Cert: cert, Key: filepath.Join(dir, "key.pem"), ClientCA: cert}
}

// who is a client over TCP; without names it is one in plain text.
func who(names ...string) nbd.Client {
	client := nbd.Client{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}}
	if len(names) > 0 {
		client.Encrypted = true
		client.Certificate = &x509.Certificate{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names[1:]}
	}
	return client
}

// open opens an export over TCP and returns its device and what to do in the end.
func (c *Control) openTCP(t *testing.T, client nbd.Client, name string) (nbd.Device, func()) {
	t.Helper()
	e, release, err := (tcpExports{sharedExports{c}}).AcquireFor(client, name)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	return e.Device, release
}

func TestClientsOverTCPGetWhatIsMeantForThem(t *testing.T) {
	cfg := testConfig(t)
	cfg.NBD.Listen = "127.0.0.1:0"
	withTLS(t, cfg)
	c, _ := start(t, cfg, newFakeEngine())
	for name, spec := range map[string]AttachSpec{
		"local": {}, "open": {TCP: true}, "named": {TCP: true, Clients: []string{"node1", "node2.example"}},
	} {
		newVolume(t, c, name)
		spec.Volume = name
		if _, _, err := c.Attach(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.CreateSnapshot(t.Context(), "named", "s"); err != nil {
		t.Fatal(err)
	}
	table := tcpExports{sharedExports{c}}
	for _, x := range []struct {
		client nbd.Client
		export string
		want   error
	}{
		{who("node1"), "named", nil},
		{who("anything", "node2.example"), "named", nil},
		{who("node1"), "named@s", nil},
		{who("node1"), "open", nil},
		{who(), "open", nil}, // loopback, where the client chooses
		{who(), "named", nbd.ErrTLSRequired},
		{who(), "named@s", nbd.ErrTLSRequired},
		{who("node3"), "named", block.ErrNotFound},
		{who("node3"), "named@s", block.ErrNotFound},
		{who("node1"), "local", block.ErrNotFound},
		{who("node1"), "", block.ErrNotFound},
		{who("node1"), "named@none", block.ErrNotFound},
	} {
		_, release, err := table.AcquireFor(x.client, x.export)
		if err == nil {
			release()
		}
		if !errors.Is(err, x.want) {
			t.Errorf("%q of %q: %v, want %v", x.client.Identity(), x.export, err, x.want)
		}
	}
	for identity, want := range map[string]int{"node1": 2, "node3": 1} {
		if got := table.ListFor(who(identity)); len(got) != want {
			t.Errorf("%s sees %v, want %d exports", identity, got, want)
		}
	}
	if c.attachmentOf("named").Connections != 0 {
		t.Error("connections are left")
	}
	again, _, err := c.Attach(t.Context(), AttachSpec{Volume: "named", TCP: true, Clients: []string{"node3"}})
	if err != nil || len(again.Clients) != 1 || !strings.HasPrefix(again.TCPURI, "nbds://127.0.0.1:") {
		t.Fatalf("other clients: %+v, %v", again, err)
	}
	_, release := c.openTCP(t, who("node3"), "named")
	release()
	if _, _, err := table.AcquireFor(who("node1"), "named"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a client that was taken off: %v", err)
	}
}

// Over TCP a write is durable before its reply, on a volume in writeback mode too, unless somebody wants it otherwise. On the socket it is as the volume wants it.
func TestWritesOverTCPAreDurable(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	cfg.NBD.Listen = "127.0.0.1:0"
	c, _ := start(t, cfg, engine)
	for _, x := range []struct {
		spec   AttachSpec
		socket bool
		want   int
	}{
		{AttachSpec{Volume: "a", TCP: true}, false, 1},
		{AttachSpec{Volume: "b", TCP: true, Inject: "delay=1us"}, false, 1},
		{AttachSpec{Volume: "c", TCP: true, TCPWriteback: true}, false, 0},
		{AttachSpec{Volume: "d", TCP: true}, true, 0},
	} {
		newVolume(t, c, x.spec.Volume)
		if _, _, err := c.Attach(t.Context(), x.spec); err != nil {
			t.Fatal(err)
		}
		e, leave, err := sharedExports{c}.acquire(x.spec.Volume, !x.socket)
		if err != nil {
			t.Fatal(err)
		}
		engine.fua = 0
		if err := e.Device.Write(t.Context(), []nbd.Write{{Data: make([]byte, 512)}}, false); err != nil || engine.fua != x.want {
			t.Errorf("%+v: %d durable writes, want %d, %v", x.spec, engine.fua, x.want, err)
		}
		leave()
	}
}

// recording is the FUA of each change that reached the engine.
type recording struct {
	shown
	fua []bool
}

func (r *recording) TryWrite(_ []nbd.Write, fua bool) error {
	r.fua = append(r.fua, fua)
	return nil
}

func (r *recording) Write(_ context.Context, _ []nbd.Write, fua bool) error {
	r.fua = append(r.fua, fua)
	return nil
}

func (r *recording) Trim(_ context.Context, _ block.Range, fua bool) error {
	r.fua = append(r.fua, fua)
	return nil
}

func (r *recording) Zero(_ context.Context, _ block.Range, _, fua bool) error {
	r.fua = append(r.fua, fua)
	return nil
}

func TestDurableMakesEveryChangeSo(t *testing.T) {
	r := &recording{}
	d, ctx := durable{r}, t.Context()
	if err := errors.Join(d.TryWrite(nil, false), d.Write(ctx, nil, false), d.Trim(ctx, block.Range{}, false), d.Zero(ctx, block.Range{}, false, false)); err != nil {
		t.Fatal(err)
	}
	for i, fua := range r.fua {
		if !fua {
			t.Errorf("change %d came without FUA", i)
		}
	}
	if len(r.fua) != 4 {
		t.Errorf("%d changes came through", len(r.fua))
	}
}

func TestReadOnlyRefusesEveryChange(t *testing.T) {
	d, ctx := readOnly{&recording{}}, t.Context()
	for i, err := range []error{d.TryWrite(nil, false), d.Write(ctx, nil, false), d.Trim(ctx, block.Range{}, false), d.Zero(ctx, block.Range{}, false, false)} {
		if !errors.Is(err, block.ErrReadOnly) {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if !d.ReadOnly() {
		t.Error("it says that it can be written")
	}
}

// startOn is start on a machine in that boot.
func startOn(t *testing.T, cfg *config.Loaded, engine *fakeEngine, boot string) (c *Control, stop func()) {
	t.Helper()
	c, err := Open(t.Context(), Options{
		Config: cfg, Boot: boot,
		OpenEngine: func(context.Context, config.Config, *slog.Logger) (Engine, error) { return engine, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// After the machine went down under a client in writeback mode that client must not go on as if nothing had happened.
func TestLostWritesKeepTheClientOut(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	cfg.NBD.Listen = "127.0.0.1:0"
	spec := AttachSpec{Volume: "v", TCP: true, TCPWriteback: true}
	write := func(c *Control, name string) (leave func()) {
		t.Helper()
		d, leave := c.openTCP(t, who(), name)
		batch := []nbd.Write{{Off: 0, Data: make([]byte, 512)}}
		if err := d.TryWrite(batch, false); !errors.Is(err, block.ErrWouldBlock) && name == "v" {
			t.Errorf("a first write that is not noted: %v", err)
		}
		if err := d.Write(t.Context(), batch, false); err != nil {
			t.Fatal(err)
		}
		return leave
	}
	refused := func(c *Control) bool {
		t.Helper()
		_, release, err := (tcpExports{sharedExports{c}}).AcquireFor(who(), "v")
		if err == nil {
			release()
		}
		if problems := c.Status().Problems; (err != nil) != (len(problems) == 1) {
			t.Errorf("%v, but the problems are %q", err, problems)
		}
		return err != nil
	}

	c, stop := startOn(t, cfg, engine, "boot 1")
	for _, name := range []string{"v", "w"} {
		newVolume(t, c, name)
	}
	for _, s := range []AttachSpec{spec, {Volume: "w", TCP: true}} {
		if _, _, err := c.Attach(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	write(c, "v")() // written, flushed, left
	stop()
	c, stop = startOn(t, cfg, engine, "boot 2")
	if refused(c) {
		t.Error("refused although the client had left in order")
	}
	leaveV, leaveW := write(c, "v"), write(c, "w")
	state, err := os.ReadFile(c.attachmentsPath()) // as a power cut would leave it
	if err != nil {
		t.Fatal(err)
	}
	leaveV()
	leaveW()
	stop()

	restore := func() {
		t.Helper()
		if err := os.WriteFile(c.attachmentsPath(), state, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restore()
	c, stop = startOn(t, cfg, engine, "boot 2")
	if refused(c) {
		t.Error("refused although only the daemon died")
	}
	stop()
	restore()
	c, stop = startOn(t, cfg, engine, "boot 3")
	if !refused(c) {
		t.Error("served although writes may be lost")
	}
	_, leave := c.openTCP(t, who(), "w") // durable
	leave()
	if dialNBD(t, cfg.NBD.Socket, "v") == nil {
		t.Error("not served on the socket either")
	}
	if _, _, err := c.Attach(t.Context(), spec); err != nil || !refused(c) {
		t.Errorf("attach again without force: %v, and it is served", err)
	}
	spec.Force = true
	if _, _, err := c.Attach(t.Context(), spec); err != nil || refused(c) {
		t.Errorf("force: %v, and it is not served", err)
	}
	stop()
	c, stop = startOn(t, cfg, engine, "boot 4")
	if refused(c) {
		t.Error("what was forced is refused again")
	}
	stop()
}

func TestTCPDoorThatCannotBe(t *testing.T) {
	cfg := testConfig(t)
	cfg.NBD.Listen = "127.0.0.1:0"
	withTLS(t, cfg)
	if err := os.Chmod(cfg.NBD.TLS.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	open := func() error {
		c, err := Open(t.Context(), Options{Config: cfg, OpenEngine: func(context.Context, config.Config, *slog.Logger) (Engine, error) { return newFakeEngine(), nil }})
		if err == nil {
			err = errors.Join(c.Close(context.Background()), errors.New("it opened"))
		}
		return err
	}
	if err := open(); !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that all can read: %v", err)
	}
	if err := os.WriteFile(cfg.NBD.TLS.Key, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(cfg.NBD.TLS.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a key that is none: %v", err)
	}
	cfg.NBD.TLS.Key += ".gone"
	if err := open(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no key: %v", err)
	}
}

// An attachment for TCP says so when nobody listens any more, and is served on the socket all the same.
func TestTCPThatWasSwitchedOff(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	cfg.NBD.Listen = "127.0.0.1:0"
	withTLS(t, cfg)
	c, stop := start(t, cfg, engine)
	newVolume(t, c, "v")
	at, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", TCP: true, Clients: []string{"node1"}})
	if err != nil || at.Problem != "" {
		t.Fatalf("%+v, %v", at, err)
	}
	stop()
	cfg.NBD.TLS.ClientCA = ""
	c, stop = start(t, cfg, engine)
	if at := c.attachmentOf("v"); !strings.Contains(at.Problem, "client-ca") {
		t.Errorf("without authorities: %+v", at)
	}
	if _, _, err := (tcpExports{sharedExports{c}}).AcquireFor(who(), "v"); !errors.Is(err, nbd.ErrTLSRequired) {
		t.Errorf("without authorities it is served: %v", err)
	}
	stop()
	cfg.NBD.Listen = "off"
	c, _ = start(t, cfg, engine)
	if at := c.attachmentOf("v"); !strings.Contains(at.Problem, "nbd.listen is off") || at.TCPURI != "" {
		t.Errorf("switched off: %+v", at)
	}
	if dialNBD(t, cfg.NBD.Socket, "v") == nil {
		t.Error("not served on the socket")
	}
}

// Whoever may use a volume can take three quarters of the connections, no more, and gives them back; whoever only knows the port has far fewer.
func TestConnectionsOverTCPAreBounded(t *testing.T) {
	cfg := testConfig(t)
	cfg.NBD.Listen, cfg.NBD.MaxConnections = "127.0.0.1:0", 32
	c, _ := start(t, cfg, newFakeEngine())
	newVolume(t, c, "v")
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", TCP: true}); err != nil {
		t.Fatal(err)
	}
	const most = 24
	var all []net.Conn
	settled := func() int { return c.nbd.Connections("v") }
	for range most {
		conn := dialNBDAt(t, "tcp", c.tcp.address, "v")
		if conn == nil {
			t.Fatalf("client %d of %d over TCP is not let in", len(all)+1, most)
		}
		all = append(all, conn)
	}
	if dialNBDAt(t, "tcp", c.tcp.address, "v") != nil {
		t.Error("one client too many is let in")
	}
	if dialNBD(t, cfg.NBD.Socket, "v") == nil {
		t.Error("the socket is not served")
	}
	all[0].Close()
	for settled() > most { // and the one on the socket
		time.Sleep(time.Millisecond)
	}
	conn := dialNBDAt(t, "tcp", c.tcp.address, "v")
	if conn == nil {
		t.Fatal("a connection was not given back")
	}
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client in the place of one that left: %v", err)
	}
	knocking := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", c.tcp.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.ReadFull(conn, make([]byte, 18)); err != nil {
			return nil
		}
		return conn
	}
	for k, want := range []bool{true, true, false} {
		if got := knocking() != nil; got != want {
			t.Errorf("client %d of an address in the handshake: let in %v, want %v", k+1, got, want)
		}
	}
}

// As long as a client that has written is there, the note of it is on disk, however many come and go.
func TestUnflushedWritesAreNotedAllTheWhile(t *testing.T) {
	cfg := testConfig(t)
	cfg.NBD.Listen = "127.0.0.1:0"
	c, _ := start(t, cfg, newFakeEngine())
	newVolume(t, c, "v")
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", TCP: true, TCPWriteback: true}); err != nil {
		t.Fatal(err)
	}
	noted := func() bool {
		text, err := os.ReadFile(c.attachmentsPath())
		if err != nil {
			t.Error(err)
		}
		return strings.Contains(string(text), "unflushedBoot")
	}
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 15 {
				e, leave, err := (tcpExports{sharedExports{c}}).AcquireFor(who(), "v")
				if err == nil {
					err = e.Device.Write(t.Context(), []nbd.Write{{Data: make([]byte, 512)}}, false)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if !noted() {
					t.Error("a client has written, and the note is not on disk")
				}
				leave()
			}
		})
	}
	clients.Wait()
	if noted() {
		t.Error("all have left, and the note is still there")
	}
}

// A certificate and a pre-shared key of one name are two clients.
func TestCertificatesAndKeysAreToldApart(t *testing.T) {
	key := func(identity string) nbd.Client {
		client := who()
		client.Encrypted, client.PSK = true, identity
		return client
	}
	for _, x := range []struct {
		name   string
		client nbd.Client
		want   bool
	}{
		{"node1", who("node1"), true}, {"node1", key("node1"), false}, {"psk:node1", key("node1"), true}, {"psk:node1", who("node1"), false},
		{"psk:node1", who("psk:node1"), false}, {"psk:node1", who("x", "psk:node1"), false}, {"psk:node1", key("psk:node1"), false}, {"psk:node1", who(), false}, {"psk:", who("x"), false},
	} {
		if got := mayUse([]string{x.name}, x.client); got != x.want {
			t.Errorf("%q as %q: %v", x.client.Identity(), x.name, got)
		}
	}
	cfg := testConfig(t)
	cfg.NBD.Listen = "127.0.0.1:0"
	withTLS(t, cfg)
	c, stop := start(t, cfg, newFakeEngine())
	newVolume(t, c, "v")
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", TCP: true, Clients: []string{"psk:node1"}}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "psk-file") {
		t.Errorf("a key where there are none: %v", err)
	}
	stop()
	cfg.NBD.TLS.PSKFile = filepath.Join(t.TempDir(), "keys.psk")
	if err := os.WriteFile(cfg.NBD.TLS.PSKFile, []byte("node1:00112233445566778899aabbccddeeff\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _ = start(t, cfg, newFakeEngine())
	newVolume(t, c, "v")
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", TCP: true, Clients: []string{"psk:"}}); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("an empty identity: %v", err)
	}
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", TCP: true, Clients: []string{"psk:node1", "node1"}}); err != nil {
		t.Error(err)
	}
}
