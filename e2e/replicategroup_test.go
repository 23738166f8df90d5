package e2e

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
)

// shop is a group of volumes that one program writes: of each generation a mark to the first, when that is replied one to the second, and then to the third. So at any moment each has the mark of the one before it, or of the generation before.
type shop struct {
	t          *testing.T
	a          *daemon
	uris       []string
	generation atomic.Int32 // that is being written
	stop, over chan struct{}
}

var shopVolumes = []string{"db", "files", "log"}

const (
	shopSize = "16M"
	shopMark = 64 << 10 // bytes of a mark, which is one write
)

func newShop(t *testing.T, a *daemon) *shop {
	t.Helper()
	s := &shop{t: t, a: a}
	for _, name := range shopVolumes {
		s.uris = append(s.uris, a.disk(name, shopSize))
	}
	a.run(append([]string{"volume", "group", "set", "shop"}, shopVolumes...)...)
	return s
}

// write writes generations until halt. While the daemon is down writes fail, and are repeated.
func (s *shop) write() {
	s.stop, s.over = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(s.over)
		for {
			g := s.generation.Load()
			for _, uri := range s.uris {
				mark := fmt.Sprintf("write -P %d 0 %d", g%250+1, shopMark)
				bulk := fmt.Sprintf("write -P %d %dM 1M", g%250+1, 1+int(g)%14)
				for {
					select {
					case <-s.stop:
						return
					default:
					}
					if execute(s.t, nil, "qemu-io", "-f", "raw", "-c", mark, "-c", bulk, uri).code == 0 {
						break
					}
				}
			}
			s.generation.Add(1)
		}
	}()
}

func (s *shop) halt() {
	close(s.stop)
	<-s.over
}

// check reads what a daemon has of the volumes: of one moment.
func (s *shop) check(d *daemon) (marks [3]int) {
	s.t.Helper()
	for i, name := range shopVolumes {
		p := d.exported(name)
		if !bytes.Equal(p[:shopMark], bytes.Repeat(p[:1], shopMark)) {
			s.t.Fatalf("volume %s has a part of a write", name)
		}
		marks[i] = int(p[0])
	}
	for i := 1; i < 3; i++ {
		if behind := (marks[i-1] - marks[i] + 250) % 250; behind > 1 && marks[i] != 0 {
			s.t.Fatalf("the volumes are not of one moment: marks %v", marks)
		}
	}
	if behind := (marks[0] - marks[2] + 250) % 250; behind > 1 && marks[2] != 0 {
		s.t.Fatalf("the volumes are not of one moment: marks %v", marks)
	}
	return marks
}

// Volumes of a group that are written all the time are kept in a second hvd, with SIGKILL of either side at any moment: what that has of them is of one moment, and so is what is promoted in the midst of it.
func TestReplicateGroupKilled(t *testing.T) {
	a, b := startDaemon(t), startDaemon(t)
	s := newShop(t, a)
	a.refuses(2, []string{"@GROUP"}, "volume", "replicate", "@shop", b.hvdURL("shop"))
	a.refuses(3, nil, "volume", "replicate", "@nope", b.hvdURL("@nope"))
	a.run("volume", "replicate", "@shop", b.hvdURL("@shop"), "--interval", "1s")
	a.run("volume", "replicate", "sync", "@shop")
	s.write()
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 33))
	for round := range rounds {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			a.try("volume", "replicate", "sync", "@shop")
		}()
		time.Sleep(time.Duration(rng.IntN(600)) * time.Millisecond) // when to kill, whatever it hits
		if round%2 == 0 {
			b.kill()
		}
		a.kill() // so that nothing comes while the volumes are read one after the other
		<-ended
		if round%2 == 0 {
			b.start()
		}
		s.check(b)
		a.start()
		for deadline := time.Now().Add(patience); a.try("volume", "replicate", "sync", "@shop").code != 0; {
			if time.Now().After(deadline) {
				t.Fatalf("it does not go on: %+v", a.replication("@shop"))
			}
		}
	}
	go a.try("volume", "replicate", "sync", "@shop")
	time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
	b.refuses(4, []string{"@shop"}, "volume", "replicate", "promote", "log", "--yes")
	b.run("volume", "replicate", "promote", "@shop", "--yes")
	before := s.check(b)
	b.kill()
	b.start()
	if after := s.check(b); after != before {
		t.Errorf("promoted with marks %v, and after a kill there are %v", before, after)
	}
	if got := a.try("volume", "replicate", "sync", "@shop"); got.code != 4 {
		t.Errorf("the old source sends: %d %s", got.code, got.stderr)
	}
	for _, uri := range s.uris {
		if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", "write 0 4k", uri); got.code == 0 {
			t.Errorf("a volume of the old source takes writes: %s", got.stdout)
		}
	}
	s.halt()

	// The way back, and a look at all of it there.
	for _, name := range shopVolumes {
		a.run("volume", "detach", name)
	}
	a.run("volume", "replicate", "demote", "@shop", "--yes")
	b.run("volume", "replicate", "@shop", a.hvdURL("@shop"))
	b.run("volume", "replicate", "sync", "@shop")
	if back := s.check(a); back != before {
		t.Errorf("the way back brings marks %v, and not %v", back, before)
	}
	for _, name := range shopVolumes {
		if !bytes.Equal(a.exported(name), b.exported(name)) {
			t.Errorf("volume %s came back with other content", name)
		}
	}
}

// One volume of a group lags behind a limit: promoted are all as of the moment before. Over TLS, as between sites.
func TestReplicateGroupLags(t *testing.T) {
	authority := certtest.New(t, "sites")
	listen := freePort(t, "127.0.0.1")
	files := func(name string) []string {
		dir := shortDir(t)
		authority.Store(dir, "site", authority.Issue(name, x509.ExtKeyUsageAny, time.Hour))
		return []string{"--replication-cert", dir + "/site-cert.pem", "--replication-key", dir + "/site-key.pem", "--replication-ca", dir + "/ca-cert.pem"}
	}
	b := startDaemon(t, append(files("site-b"), "--replication-listen", listen, "--replication-peers", "site-a")...)
	a := startDaemon(t, files("site-a")...)
	s := newShop(t, a)
	for i, uri := range s.uris {
		a.write(uri, fmt.Sprintf("write -P %d 0 16M", i+1))
	}
	a.run("volume", "replicate", "@shop", "hvd://"+listen+"/@shop", "--interval", "24h")
	a.run("volume", "replicate", "sync", "@shop")
	var first [][]byte
	for _, name := range shopVolumes {
		first = append(first, b.exported(name))
	}
	a.run("volume", "replicate", "limit", "@shop", "64KiB/s")
	noise := writeFile(t, "noise", string(randomImage(3, 8<<20)))
	a.write(s.uris[0], "write -P 9 0 64k")
	a.write(s.uris[1], "write -P 9 0 64k")
	if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", "write -s "+noise+" 0 8M", s.uris[2]); got.code != 0 {
		t.Fatal(got.stdout, got.stderr)
	}
	go a.try("volume", "replicate", "sync", "@shop")
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if b.replication("db").State == "ready" && b.replication("files").State == "ready" && b.replication("log").State == "receiving" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("db is %+v, log is %+v", b.replication("db"), b.replication("log"))
		}
	}
	b.run("volume", "replicate", "promote", "@shop", "--yes")
	for i, name := range shopVolumes {
		if !bytes.Equal(b.exported(name), first[i]) {
			t.Errorf("volume %s was promoted as of another moment than the group", name)
		}
	}
	for deadline := time.Now().Add(patience); a.replication("db").State != "fenced"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the old source is %+v", a.replication("db"))
		}
	}
}

// What is sent keeps to its limit, which is shown, and can be changed while it is sent.
func TestReplicateLimit(t *testing.T) {
	a, b := startDaemon(t), startDaemon(t)
	a.run("volume", "import", "v", writeFile(t, "disk.raw", string(randomImage(5, 12<<20))))
	a.refuses(2, []string{"rate"}, "volume", "replicate", "v", b.hvdURL("v"), "--limit", "4Mb/s")
	a.refuses(2, []string{"at least"}, "volume", "replicate", "v", b.hvdURL("v"), "--limit", "1kB/s")
	began := time.Now()
	a.run("volume", "replicate", "v", b.hvdURL("v"), "--interval", "24h", "--limit", "4MB/s")
	a.run("volume", "replicate", "sync", "v")
	took := time.Since(began)
	var r struct{ LimitBytes, WireBytes uint64 }
	a.json(&r, "volume", "replicate", "status", "v")
	if r.LimitBytes != 4e6 || r.WireBytes < 12<<20 {
		t.Errorf("status says %+v", r)
	}
	if least := time.Duration(float64(r.WireBytes-1<<20) / 4e6 * float64(time.Second)); took < least {
		t.Errorf("%d B at 4 MB/s took %v", r.WireBytes, took)
	}
	t.Logf("%d B at 4 MB/s took %v", r.WireBytes, took)

	a.run("volume", "replicate", "limit", "v", "64KiB/s") // 12 MiB would take more than three minutes
	if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", "write -s "+writeFile(t, "noise", string(randomImage(6, 12<<20)))+" 0 12M", a.attach("v")); got.code != 0 {
		t.Fatal(got.stdout, got.stderr)
	}
	began = time.Now()
	ended := make(chan int, 1)
	go func() { ended <- a.try("volume", "replicate", "sync", "v").code }()
	for deadline := time.Now().Add(patience); a.replication("v").State != "sending"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is %+v", a.replication("v"))
		}
	}
	a.run("volume", "replicate", "limit", "v", "0")
	if code := <-ended; code != 0 || time.Since(began) > time.Minute {
		t.Errorf("after the limit was taken away it took %v, exit code %d", time.Since(began), code)
	}
	if !bytes.Equal(a.exported("v"), b.exported("v")) {
		t.Error("the replica has other content")
	}
	a.run("volume", "replicate", "limit", "v", "30MB/s")
	a.kill()
	a.start()
	if a.json(&r, "volume", "replicate", "status", "v"); r.LimitBytes != 30e6 {
		t.Errorf("after a restart the limit is %d", r.LimitBytes)
	}
}
