package e2e

import (
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
)

// freePort is an address that nobody listens on now. It is below the ports that the kernel gives to connections on their way out: one of these would have taken it by the time
// that a daemon comes to listen on it, for the first time or again after a kill.
func freePort(t *testing.T, host string) string {
	t.Helper()
	const first, last = 15000, 32000
	var failed error
	for range 1000 {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(first+rand.IntN(last-first))))
		if err != nil {
			failed = err
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatalf("no port is free: %v", failed)
	return ""
}

// secured is a daemon that serves NBD to the network.
type secured struct {
	*daemon
	ca   *certtest.Authority
	dir  string // certificates of the server
	port string
}

func startSecured(t *testing.T) *secured {
	t.Helper()
	s := &secured{ca: certtest.New(t, "authority"), dir: shortDir(t)}
	s.ca.Store(s.dir, "server", s.ca.Server())
	listen := freePort(t, "0.0.0.0")
	_, s.port, _ = net.SplitHostPort(listen)
	s.daemon = startDaemon(t, "--nbd-listen", listen, "--nbd-tls-cert", s.dir+"/server-cert.pem", "--nbd-tls-key", s.dir+"/server-key.pem", "--nbd-tls-client-ca", s.dir+"/ca-cert.pem")
	return s
}

// tls is the URI of an export for a client with a wallet.
func (s *secured) tls(export, wallet string) string {
	return "nbds://127.0.0.1:" + s.port + "/" + export + "?tls-certificates=" + wallet
}

// qemuTLS are the arguments with which QEMU's tools open an export.
func (s *secured) qemuTLS(export, wallet string) []string {
	return []string{
		"--object", "tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir=" + wallet,
		"--image-opts", "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=" + s.port + ",export=" + export + ",tls-creds=tls0",
	}
}

// TestNBDOverTLS serves a volume to the one client that it is meant for, and to nobody else who may reach the port.
func TestNBDOverTLS(t *testing.T) {
	needs(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io")
	s := startSecured(t)
	for _, name := range []string{"mine", "theirs", "local"} {
		s.run("volume", "create", name, "--size", "16MiB")
	}
	got := s.try("volume", "attach", "mine", "--tcp", "--client", "guest")
	if u, err := url.Parse(strings.TrimSpace(got.stdout)); err != nil || u.Scheme != "nbds" || u.Port() != s.port || u.Path != "/mine" || got.stderr != "" {
		t.Fatalf("attach printed %+v, %v", got, err)
	}
	s.run("volume", "attach", "theirs", "--tcp", "--client", "somebody")
	s.attach("local")
	s.run("snapshot", "create", "mine@s")
	guest := wallet(s.t, s.ca, "guest")

	image := filepath.Join(t.TempDir(), "in.raw")
	if err := os.WriteFile(image, randomBytes(3, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	copies := func(when string) {
		t.Helper()
		if out := tool(t, "nbdinfo", s.tls("mine", guest)); !strings.Contains(out, "with TLS") || !strings.Contains(out, "qemu:dirty-bitmap:s") {
			t.Errorf("%s: nbdinfo says %s", when, out)
		}
		tool(t, "nbdcopy", "--connections=4", "--flush", image, s.tls("mine", guest))
		out := filepath.Join(t.TempDir(), "out.raw")
		tool(t, "nbdcopy", s.tls("mine", guest), out)
		equalFiles(t, image, out)
	}
	copies("after attach")
	qcow := filepath.Join(t.TempDir(), "out.qcow2")
	tool(t, "qemu-img", append([]string{"convert", "-O", "qcow2"}, append(s.qemuTLS("mine", guest), qcow)...)...)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, qcow)
	if out := tool(t, "nbdinfo", "--list", s.tls("", guest)); strings.Count(out, "export=") != 1 || !strings.Contains(out, `export="mine"`) {
		t.Errorf("the client sees %s", out)
	}
	if out := tool(t, "nbdinfo", s.tls("mine@s", guest)); !strings.Contains(out, "is_read_only: true") {
		t.Errorf("the snapshot: %s", out)
	}
	s.refusesOthers(guest)
	s.kill()
	s.start()
	copies("after a kill")
	s.refusesOthers(guest)
}

// refusesOthers tries all who may not.
func (s *secured) refusesOthers(guest string) {
	s.t.Helper()
	nameless := shortDir(s.t) // a folder with the authority alone
	s.ca.StoreSelf(nameless)
	other := certtest.New(s.t, "another authority")
	forged := wallet(s.t, other, "guest")
	s.ca.StoreSelf(forged)
	for what, uri := range map[string]string{
		"a stranger":                      s.tls("mine", wallet(s.t, s.ca, "stranger")),
		"a stranger, of the snapshot":     s.tls("mine@s", wallet(s.t, s.ca, "stranger")),
		"the guest, of another's volume":  s.tls("theirs", guest),
		"the guest, of a local volume":    s.tls("local", guest),
		"a client without a certificate":  s.tls("mine", nameless),
		"a client of another authority":   s.tls("mine", forged),
		"a client that trusts another CA": s.tls("mine", wallet(s.t, other, "guest")),
		"plain text":                      "nbd://127.0.0.1:" + s.port + "/mine",
	} {
		if got := tryTool(s.t, "nbdinfo", uri); got.code == 0 {
			s.t.Errorf("%s got in: %s", what, got.stdout)
		}
	}
	plain := tryTool(s.t, "qemu-img", "info", "nbd://127.0.0.1:"+s.port+"/mine")
	if plain.code == 0 || !strings.Contains(plain.stderr, "TLS") {
		s.t.Errorf("qemu-img in plain text: %+v", plain)
	}
}

// TestCertificatesAreRenewed: new files are taken up without a restart, and files that are no good change nothing.
func TestCertificatesAreRenewed(t *testing.T) {
	needs(t, "nbdinfo")
	s := startSecured(t)
	s.run("volume", "create", "v", "--size", "1MiB")
	s.run("volume", "attach", "v", "--tcp", "--client", "guest")
	old := wallet(s.t, s.ca, "guest")
	open := func(wallet string) bool {
		t.Helper()
		return tryTool(t, "nbdinfo", s.tls("v", wallet)).code == 0
	}
	if !open(old) {
		t.Fatal("the guest is not let in")
	}
	if err := os.WriteFile(s.dir+"/server-cert.pem", []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !open(old) {
		t.Error("a file that is no certificate was taken up")
	}
	s.says("changed TLS files cannot be used")
	next := certtest.New(t, "next")
	next.Store(s.dir, "server", next.Server())
	if open(old) {
		t.Error("a certificate of the old authority is good for ever")
	}
	if !open(wallet(t, next, "guest")) {
		t.Error("a certificate of the new authority is not good")
	}
	if err := os.Chmod(s.dir+"/server-key.pem", 0o644); err != nil {
		t.Fatal(err)
	}
	if got := s.try("status"); !strings.Contains(got.stderr, "chmod 600") {
		t.Errorf("status says nothing of a key that all can read: %+v", got)
	}
	s.kill()
	s.refusesToStart(2, "server-key.pem", "chmod 600")
}

// TestPlainTCP is for this machine alone.
func TestPlainTCP(t *testing.T) {
	needs(t, "nbdinfo", "qemu-io")
	d := startDaemon(t, "--nbd-listen", freePort(t, "127.0.0.1"))
	d.run("volume", "create", "v", "--size", "4MiB")
	d.refuses(4, []string{"nbd.tls.client-ca"}, "volume", "attach", "v", "--tcp", "--client", "guest")
	got := d.try("volume", "attach", "v", "--tcp")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "nbd://127.0.0.1:") || !strings.Contains(got.stderr, "every user of this machine") {
		t.Fatalf("attach: %+v", got)
	}
	uri := strings.TrimSpace(got.stdout)
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 5 0 1M", "-c", "discard 0 64k", "-c", "read -P 5 64k 64k", uri)
	if out := tool(t, "nbdinfo", uri); !strings.Contains(out, "without TLS") {
		t.Errorf("nbdinfo: %s", out)
	}
	d.kill()
	open := newDaemon(t, "--nbd-listen", "0.0.0.0:0")
	open.refusesToStart(2, "nbd.listen", "nbd.tls.cert", "nbd.tls.client-ca")
}

// TestWritebackOverTCPAfterPowerCut: a client that wrote without a flush before the machine went down is kept out until somebody says so. The machine stays up here: hvd is
// killed, and the boot that it has on record becomes another one.
func TestWritebackOverTCPAfterPowerCut(t *testing.T) {
	needs(t, "nbdinfo", "qemu-io")
	d := startDaemon(t, "--nbd-listen", freePort(t, "127.0.0.1"))
	d.run("volume", "create", "v", "--size", "4MiB")
	got := d.try("volume", "attach", "v", "--tcp", "--writeback")
	if got.code != 0 || !strings.Contains(got.stderr, "goes down") {
		t.Fatalf("attach: %+v", got)
	}
	uri := strings.TrimSpace(got.stdout)
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &nbdClient{conn: conn}
	if err := c.negotiate("v"); err != nil {
		t.Fatal(err)
	}
	if err := c.write(randomBytes(1, 64<<10), 0); err != nil {
		t.Fatal(err)
	}
	d.kill()
	path := filepath.Join(d.dir, "control", "attachments.json")
	state := string(contents(t, path))
	another := regexp.MustCompile(`"unflushedBoot": ".*"`).ReplaceAllString(state, `"unflushedBoot": "another"`)
	if another == state {
		t.Fatalf("no boot is on record: %s", state)
	}
	d.start() // the same boot: nothing is lost
	tool(t, "nbdinfo", uri)
	d.kill()
	if err := os.WriteFile(path, []byte(another), 0o600); err != nil {
		t.Fatal(err)
	}
	d.start()
	if got := tryTool(t, "nbdinfo", uri); got.code == 0 {
		t.Error("the client is let in again")
	}
	tool(t, "nbdinfo", d.uri("v"))
	if got := d.try("status"); got.code != 0 || !strings.Contains(got.stderr, "--force") {
		t.Errorf("status: %+v", got)
	}
	d.run("volume", "attach", "v", "--tcp", "--writeback", "--force")
	tool(t, "nbdinfo", uri)
}

// TestTLSStepByStep runs the commands of docs/nbd.md and connects with what they make.
func TestTLSStepByStep(t *testing.T) {
	needs(t, "openssl", "nbdinfo")
	page := string(contents(t, "../docs/nbd.md"))
	_, block, found := strings.Cut(page, "```sh\n")
	block, _, ends := strings.Cut(block, "```")
	if !found || !ends || !strings.Contains(block, "openssl") {
		t.Fatal("the page has no such commands")
	}
	dir := shortDir(t)
	tool(t, "sh", "-euc", "cd "+dir+"\n"+strings.ReplaceAll(block, "storage1.example", "localhost"))
	listen := freePort(t, "0.0.0.0")
	d := startDaemon(t, "--nbd-listen", listen, "--nbd-tls-cert", dir+"/server/server-cert.pem", "--nbd-tls-key", dir+"/server/server-key.pem", "--nbd-tls-client-ca", dir+"/server/ca-cert.pem")
	d.run("volume", "create", "web1", "--size", "1MiB")
	d.run("volume", "attach", "web1", "--tcp", "--client", "node1.example")
	_, port, _ := net.SplitHostPort(listen)
	if out := tool(t, "nbdinfo", "nbds://localhost:"+port+"/web1?tls-certificates="+dir+"/node1"); !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo: %s", out)
	}
}

// TestPSKStepByStep runs the commands of docs/nbd.md and connects with what they make. A certificate's door stays open beside it, and neither passes for the other.
func TestPSKStepByStep(t *testing.T) {
	needs(t, "openssl", "nbdinfo", "qemu-img")
	page := string(contents(t, "../docs/nbd.md"))
	_, block, found := strings.Cut(page, "### Pre-shared keys step by step")
	_, block, begins := strings.Cut(block, "```sh\n")
	block, _, ends := strings.Cut(block, "```")
	if !found || !begins || !ends || !strings.Contains(block, "keys.psk") {
		t.Fatal("the page has no such commands")
	}
	dir := shortDir(t)
	tool(t, "sh", "-euc", "cd "+dir+"\n"+block)
	listen := freePort(t, "0.0.0.0")
	_, port, _ := net.SplitHostPort(listen)
	d := startDaemon(t, "--nbd-listen", listen, "--nbd-tls-psk-file", dir+"/keys.psk")
	for _, name := range []string{"web1", "other"} {
		d.run("volume", "create", name, "--size", "1MiB")
	}
	d.refuses(4, []string{"nbd.tls.client-ca"}, "volume", "attach", "web1", "--tcp", "--client", "node1")
	d.run("volume", "attach", "web1", "--tcp", "--client", "psk:node1")
	d.run("volume", "attach", "other", "--tcp", "--client", "psk:node2")
	uri := func(identity, volume string) string {
		return "nbds://" + identity + "@127.0.0.1:" + port + "/" + volume + "?tls-psk-file=" + dir + "/node1/keys.psk"
	}
	if out := tool(t, "nbdinfo", uri("node1", "web1")); !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo: %s", out)
	}
	tool(t, "qemu-img", "info", "--object", "tls-creds-psk,id=tls0,endpoint=client,username=node1,dir="+dir+"/node1",
		"--image-opts", "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port="+port+",export=web1,tls-creds=tls0")
	for what, other := range map[string]string{
		"another's volume": uri("node1", "other"), "an unknown identity": uri("node3", "web1"), "plain text": "nbd://127.0.0.1:" + port + "/web1",
	} {
		if got := tryTool(t, "nbdinfo", other); got.code == 0 {
			t.Errorf("%s: %+v", what, got)
		}
	}
	d.says("client=psk:node1")
	if log := d.log.String(); strings.Contains(log, strings.TrimSpace(string(contents(t, dir+"/node1/keys.psk")))[6:16]) {
		t.Errorf("the log: %s", log)
	}
	if err := os.WriteFile(dir+"/new.psk", []byte("node2:00112233445566778899aabbccddeeff\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/new.psk", dir+"/keys.psk"); err != nil {
		t.Fatal(err)
	}
	if got := tryTool(t, "nbdinfo", uri("node1", "web1")); got.code == 0 {
		t.Error("an identity that was taken away is let in")
	}
	if err := os.Chmod(dir+"/keys.psk", 0o644); err != nil {
		t.Fatal(err)
	}
	if got := d.try("status"); !strings.Contains(got.stderr, "nbd.tls.psk-file") || !strings.Contains(got.stderr, "chmod 600") {
		t.Errorf("status says nothing of keys that all can read: %+v", got)
	}
	d.kill()
	d.refusesToStart(2, "keys.psk", "chmod 600")
}
