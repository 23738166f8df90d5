package e2e

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
)

// replication is what `volume replicate status -o json` prints.
type replication struct {
	Role, State string
	Epoch       uint64
	FencedBy    uint64
	RPOSeconds  *float64
	BehindBytes *uint64
	DataBytes   uint64
	Error       string
}

func (d *daemon) replication(volume string) (r replication) {
	d.t.Helper()
	d.json(&r, "volume", "replicate", "status", volume)
	return r
}

// hvdURL is where another hvd of this machine sends replicas to.
func (d *daemon) hvdURL(volume string) string {
	return "hvd+unix:///" + volume + "?socket=" + d.dir + "/hvd.sock"
}

// exported reads a volume, or the newest point of a replica.
func (d *daemon) exported(volume string) []byte {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), "disk.raw")
	d.run("volume", "export", volume, path)
	text, err := os.ReadFile(path)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		d.t.Fatal(err)
	}
	return text
}

// write has qemu-io do something to an export.
func (d *daemon) write(uri string, commands ...string) {
	d.t.Helper()
	args := []string{"-f", "raw", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if got := execute(d.t, nil, "qemu-io", append(args, uri)...); got.code != 0 {
		d.t.Fatalf("qemu-io %q: %s%s", commands, got.stdout, got.stderr)
	}
}

// A volume is kept in a second hvd while it is written, is taken over there, and comes back: byte for byte at each step. Who was taken over from takes no writes.
func TestReplicateAndFailOver(t *testing.T) {
	a, b := startDaemon(t), startDaemon(t)
	data := make([]byte, 48<<20)
	rng := rand.New(rand.NewPCG(20, 5))
	for i := range data[:20<<20] {
		data[i] = byte(rng.Uint32())
	}
	a.run("volume", "import", "web1", writeFile(t, "disk.raw", string(data)))
	a.refuses(2, []string{"hvd://HOST"}, "volume", "replicate", "web1", "http://x/web1")
	a.refuses(2, []string{"replication.cert"}, "volume", "replicate", "web1", "hvd://localhost/web1")
	a.run("volume", "replicate", "web1", b.hvdURL("web1"), "--interval", "1s")
	a.run("volume", "replicate", "sync", "web1")
	if !bytes.Equal(b.exported("web1"), data) {
		t.Fatal("the replica has other content")
	}
	a.refuses(4, []string{"replicate stop"}, "volume", "delete", "web1", "--yes")
	uri := a.attach("web1")
	a.write(uri, "write -P 7 3M 256k", "write -P 9 40M 8k", "discard 8M 2M", "write -z 12M 64k")
	copy(data[3<<20:], bytes.Repeat([]byte{7}, 256<<10))
	copy(data[40<<20:], bytes.Repeat([]byte{9}, 8<<10))
	clear(data[8<<20 : 10<<20])
	clear(data[12<<20 : 12<<20+64<<10])
	before := a.replication("web1").DataBytes
	a.run("volume", "replicate", "sync", "web1")
	if !bytes.Equal(b.exported("web1"), data) {
		t.Fatal("after writes the replica has other content")
	}
	if r := a.replication("web1"); r.DataBytes-before > 4<<20 || r.BehindBytes == nil || *r.BehindBytes != 0 || r.RPOSeconds == nil || *r.RPOSeconds > 60 {
		t.Errorf("about 264 KiB changed, and the source says %+v, %d sent before", r, before)
	}
	if got := execute(t, nil, "curl", "-s", "--unix-socket", a.dir+"/hvd.sock", "http://hvd/metrics"); !strings.Contains(got.stdout, `hv_replication_rpo_seconds{volume="web1",role="source"} `) {
		t.Errorf("metrics: %s%s", got.stdout, got.stderr)
	}
	b.refuses(4, []string{"replica"}, "volume", "attach", "web1")

	b.run("volume", "replicate", "promote", "web1", "--yes")
	if a.try("volume", "replicate", "sync", "web1").code != 4 {
		t.Error("the old source still sends")
	}
	if r := a.replication("web1"); r.State != "fenced" || r.FencedBy != 2 {
		t.Errorf("the old source is %+v", r)
	}
	if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", "write 0 4k", uri); got.code == 0 {
		t.Errorf("the old source takes writes: %s", got.stdout)
	}
	other := b.attach("web1")
	b.write(other, "write -P 5 30M 1M")
	copy(data[30<<20:], bytes.Repeat([]byte{5}, 1<<20))
	a.refuses(4, nil, "volume", "replicate", "demote", "web1", "--yes") // attached
	a.run("volume", "detach", "web1")
	var loss struct {
		LostBytes uint64
		DryRun    bool
	}
	if a.json(&loss, "volume", "replicate", "demote", "web1", "--dry-run"); loss.LostBytes != 0 || !loss.DryRun || a.replication("web1").Role != "source" {
		t.Errorf("nothing would be lost, and a dry run says %+v", loss)
	}
	a.run("volume", "replicate", "demote", "web1", "--yes")
	before = b.replication("web1").DataBytes
	b.run("volume", "replicate", "web1", a.hvdURL("web1"))
	b.run("volume", "replicate", "sync", "web1")
	if r := b.replication("web1"); r.Role != "source" || r.DataBytes-before > 4<<20 {
		t.Errorf("the way back sent too much: %+v, %d before", r, before)
	}
	if !bytes.Equal(a.exported("web1"), data) {
		t.Fatal("what came back has other content")
	}

	// A move without loss: sync, demote, promote.
	b.run("volume", "detach", "web1")
	b.run("volume", "replicate", "sync", "web1")
	b.run("volume", "replicate", "demote", "web1", "--yes")
	a.run("volume", "replicate", "promote", "web1", "--yes")
	uri = a.attach("web1")
	a.run("volume", "replicate", "web1", b.hvdURL("web1"), "--interval", "1s")
	a.write(uri, "write -P 6 0 64k")
	copy(data, bytes.Repeat([]byte{6}, 64<<10))
	a.run("volume", "resize", "web1", "--size", "50M", "--keep-connections")
	data = append(data, make([]byte, 50<<20-len(data))...)
	a.run("volume", "replicate", "sync", "web1")
	if !bytes.Equal(b.exported("web1"), data) {
		t.Fatal("after the move the replica has other content")
	}
	copied := filepath.Join(t.TempDir(), "copy.raw")
	b.run("volume", "clone", "web1", "look")
	if got := execute(t, nil, "nbdcopy", b.attach("look"), copied); got.code != 0 {
		t.Fatal(got.stderr)
	}
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, data) {
		t.Errorf("nbdcopy of a clone of the replica: %v", err)
	}
}

// What was stopped can begin anew once the old replica is deleted; a replica whose source is gone can be promoted or deleted.
func TestReplicateStop(t *testing.T) {
	a, b := startDaemon(t), startDaemon(t)
	a.write(a.disk("v", "20M"), "write -P 3 1M 1M")
	a.run("volume", "replicate", "v", b.hvdURL("v"))
	a.run("volume", "replicate", "sync", "v")
	a.run("volume", "replicate", "stop", "v", "--yes")
	var shown struct{ Snapshots int }
	if a.json(&shown, "volume", "show", "v"); shown.Snapshots != 0 {
		t.Errorf("a stopped replication leaves %d snapshots", shown.Snapshots)
	}
	a.run("volume", "replicate", "v", b.hvdURL("v"))
	a.refuses(4, []string{"another replication"}, "volume", "replicate", "sync", "v")
	b.run("volume", "delete", "v", "--yes")
	a.run("volume", "replicate", "sync", "v")
	if !bytes.Equal(b.exported("v"), a.exported("v")) {
		t.Error("the new replica has other content")
	}
	b.run("volume", "delete", "v", "--yes")
	a.refuses(4, []string{"begin anew"}, "volume", "replicate", "sync", "v")
	a.kill()
	a.start()
	if r := a.replication("v"); r.Role != "source" || r.RPOSeconds == nil {
		t.Errorf("after a kill: %+v", r)
	}
}

// SIGKILL of either side at any moment of any step leaves the replica at a complete point: all bytes are of one generation, also in what is promoted in the midst of it.
func TestReplicateKilled(t *testing.T) {
	t.Parallel() // it waits for many starts
	a, b := startDaemon(t), startDaemon(t)
	const size = 24 << 20
	uri := a.disk("v", "24M")
	uniform := func(p []byte) int {
		t.Helper()
		if len(p) != size || !bytes.Equal(p, bytes.Repeat(p[:1], size)) {
			t.Fatalf("the replica is a mixture, at its beginning %d", p[0])
		}
		return int(p[0])
	}
	write := func(generation int) { a.write(uri, fmt.Sprintf("write -P %d 0 24M", generation), "flush") }
	write(1)
	a.run("volume", "replicate", "v", b.hvdURL("v"), "--interval", "24h")
	a.run("volume", "replicate", "sync", "v")
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3))
	for generation := 2; generation < 2+rounds; generation++ {
		write(generation)
		victim := []*daemon{a, b}[generation%2]
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			a.try("volume", "replicate", "sync", "v")
		}()
		time.Sleep(time.Duration(rng.IntN(250)) * time.Millisecond) // when to kill, whatever it hits
		victim.kill()
		<-ended
		victim.start()
		if got := uniform(b.exported("v")); got != generation && got != generation-1 {
			t.Fatalf("after a kill in generation %d the replica has %d", generation, got)
		}
		for deadline := time.Now().Add(patience); ; {
			if a.try("volume", "replicate", "sync", "v").code == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("it does not go on: %+v", a.replication("v"))
			}
		}
		if got := uniform(b.exported("v")); got != generation {
			t.Fatalf("after a sync in generation %d the replica has %d", generation, got)
		}
	}
	write(100)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.try("volume", "replicate", "sync", "v")
	}()
	time.Sleep(time.Duration(rng.IntN(150)) * time.Millisecond)
	a.kill()
	<-ended
	b.run("volume", "replicate", "promote", "v", "--yes")
	b.kill()
	b.start()
	if got := uniform(b.exported("v")); got != 100 && got != 1+rounds {
		t.Fatalf("what was promoted has generation %d", got)
	}
	a.start()
	if got := a.try("volume", "replicate", "sync", "v"); got.code != 4 {
		t.Errorf("the old source comes back and sends: %d %s", got.code, got.stderr)
	}
	if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", "write 0 4k", uri); got.code == 0 {
		t.Errorf("the old source takes writes: %s", got.stdout)
	}
}

// hvd:// is TLS with certificates on both sides: nobody else gets as far as a request.
func TestReplicateOverTLS(t *testing.T) {
	authority, stranger := certtest.New(t, "sites"), certtest.New(t, "strangers")
	listen := freePort(t, "127.0.0.1")
	files := func(a *certtest.Authority, name string) []string {
		dir := shortDir(t)
		a.Store(dir, "site", a.Issue(name, x509.ExtKeyUsageAny, time.Hour))
		return []string{"--replication-cert", dir + "/site-cert.pem", "--replication-key", dir + "/site-key.pem", "--replication-ca", dir + "/ca-cert.pem"}
	}
	b := startDaemon(t, append(files(authority, "site-b"), "--replication-listen", listen, "--replication-peers", "site-a")...)
	a := startDaemon(t, files(authority, "site-a")...)
	unnamed, foreign := startDaemon(t, files(authority, "site-c")...), startDaemon(t, files(stranger, "site-a")...)
	for _, d := range []*daemon{a, unnamed, foreign} {
		uri := d.disk("v", "20M")
		d.write(uri, "write -P 3 1M 1M")
		d.run("volume", "replicate", "v", "hvd://"+listen+"/v")
	}
	a.run("volume", "replicate", "sync", "v")
	if want := a.exported("v"); !bytes.Equal(b.exported("v"), want) || want[1<<20] != 3 {
		t.Error("the replica has other content")
	}
	for says, d := range map[string]*daemon{"replication.peers": unnamed, "certificate": foreign} {
		got := d.try("volume", "replicate", "sync", "v")
		if got.code != 4 || !strings.Contains(got.stderr, says) {
			t.Errorf("a stranger: %d %s; want %q", got.code, got.stderr, says)
		}
	}
	conn, err := net.Dial("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "POST /v1/replicas/v HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if answer, _ := io.ReadAll(conn); bytes.Contains(answer, []byte("points")) {
		t.Errorf("without TLS it says %q", answer)
	}
	newDaemon(t, "--replication-listen", listen).refusesToStart(2, "replication.cert")
}
