package host

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// dial connects as a client that says what it likes.
func (s *site) dial(peer string) *tls.Conn {
	s.t.Helper()
	c, err := tls.Dial("tcp", s.address, &tls.Config{RootCAs: s.authority.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{s.authority.Client(peer)}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// say sends a request as it is and returns the answer's status and text.
func (s *site) say(peer, text string) (int, string) {
	s.t.Helper()
	c := s.dial(peer)
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.t.Fatalf("%.60q: %v", text, err)
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	return answer.StatusCode, string(body)
}

// Whatever a client with all rights asks for, it gets no further than its repository, and a request that is none changes nothing.
func TestHostileRequests(t *testing.T) {
	s := newSite(t, "admin=all,own=all:own", nil)
	s.made("admin", "vms")
	if err := s.client("admin", "vms").Create(t.Context(), "config", []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(filepath.Dir(s.o.Dir), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := tree(t, s.o.Dir)
	const put = "If-None-Match: *\r\nContent-Length: 1\r\n\r\nx"
	for _, c := range []struct {
		line, rest string
		status     int
	}{
		{"PUT /v1/repositories/vms/objects/..%2foutside", put, 400},
		{"PUT /v1/repositories/vms/objects/a%2f..%2f..%2foutside", put, 400},
		{"PUT /v1/repositories/vms/objects/../../outside", put, 307},
		{"GET /v1/repositories/..%2f/objects/outside", "\r\n", 400},
		{"GET /v1/repositories/%2e%2e/objects/outside", "\r\n", 400},
		{"GET /v1/repositories/.../objects/outside", "\r\n", 400},
		{"PUT /v1/repositories/VMS", "Content-Length: 0\r\n\r\n", 400},
		{"PUT /v1/repositories/%00", "Content-Length: 0\r\n\r\n", 400},
		{"PUT /v1/repositories/" + strings.Repeat("a", 65), "Content-Length: 0\r\n\r\n", 400},
		{"PUT /v1/repositories/vms/objects/tmp/x", put, 400},
		{"PUT /v1/repositories/vms/objects/tmp", put, 400},
		{"PUT /v1/repositories/vms/objects/" + strings.Repeat("a", 201), put, 400},
		{"PUT /v1/repositories/vms/objects/a/b/c/d/e", put, 400},
		{"PUT /v1/repositories/vms/objects/", put, 400},
		{"PUT /v1/repositories/vms/objects/x", "Content-Length: 1\r\n\r\nx", 428},
		{"PUT /v1/repositories/vms/objects/x", "If-None-Match: \"x\"\r\nContent-Length: 1\r\n\r\nx", 428},
		{"PUT /v1/repositories/vms/objects/x", "If-None-Match: *\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 411},
		{"PUT /v1/repositories/vms/objects/x", "If-None-Match: *\r\nContent-Length: 268435457\r\n\r\nx", 413},
		{"PUT /v1/repositories/vms/objects/manifests/x", "If-None-Match: *\r\nContent-Length: 8388609\r\n\r\nx", 413},
		{"PUT /v1/repositories/vms/objects/config", put, 412},
		{"GET /v1/repositories/vms/objects?prefix=../", "\r\n", 400},
		{"GET /v1/repositories/vms/objects?prefix=/", "\r\n", 400},
		{"GET /v1/repositories/vms/objects?prefix=a//", "\r\n", 400},
		{"GET /v1/repositories/vms/objects?after=../x", "\r\n", 400},
		{"GET /v1/repositories/vms/objects/config", "Range: bytes=0-\r\n\r\n", 400},
		{"GET /v1/repositories/vms/objects/config", "Range: bytes=-5\r\n\r\n", 400},
		{"GET /v1/repositories/vms/objects/config", "Range: bytes=0-1,3-4\r\n\r\n", 400},
		{"GET /v1/repositories/vms/objects/config", "Range: bytes=5-4\r\n\r\n", 400},
		{"GET /v1/repositories/vms/objects/config", "Range: bytes=0-10\r\n\r\n", 416},
		{"GET /v1/repositories/vms/objects/config", "Range: bytes=0-9223372036854775807\r\n\r\n", 400},
		{"GET /v1/repositories/vms/objects/config", "\r\n", 200},
		{"GET /v1/repositories/vms/stat/config?hash=md5", "\r\n", 400},
		{"POST /v1/repositories/vms/objects/x", put, 404},
		{"DELETE /v1/repositories/vms", "\r\n", 404},
		{"GET /graphql", "\r\n", 404},
	} {
		if status, text := s.say("admin", c.line+" HTTP/1.1\r\nHost: x\r\n"+c.rest); status != c.status || strings.Contains(text, "secret") || strings.Contains(text, s.o.Dir) {
			t.Errorf("%s %q: status %d, want %d: %s", c.line, c.rest, status, c.status, text)
		}
	}
	if status, text := s.say("own", "GET /v1/repositories/vms/objects/config HTTP/1.1\r\nHost: x\r\n\r\n"); status != 403 {
		t.Errorf("another's repository: %d %s", status, text)
	}
	if after := tree(t, s.o.Dir); after != before {
		t.Errorf("before there was %s, now %s", before, after)
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "secret" {
		t.Errorf("outside: %q, %v", text, err)
	}
}

// tree names the files of a folder.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(path, dir))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

// Who sends a byte now and then, or takes none, is cut off, leaves nothing, and its place is another's.
func TestSlowClients(t *testing.T) {
	s := newSite(t, "admin=all", func(o *Options) { o.Stall = 300 * time.Millisecond })
	c := s.made("admin", "vms")
	big := bytes.Repeat([]byte("0123456789abcdef"), 2<<20)
	if err := c.Create(t.Context(), "packs/aa/big", big); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for n := range maxBusyOfOne {
		conn := s.dial("admin")
		all.Go(func() {
			if n%2 == 0 {
				_, _ = fmt.Fprintf(conn, "PUT /v1/repositories/vms/objects/packs/aa/%d HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\nContent-Length: 4000\r\n\r\n", n)
				for range 20 { // 5 s in all, which its 4,000 B do not need
					if _, err := conn.Write([]byte("x")); err != nil {
						return
					}
					time.Sleep(250 * time.Millisecond)
				}
				t.Errorf("client %d is not cut off", n)
				return
			}
			_, _ = io.WriteString(conn, "GET /v1/repositories/vms/objects/packs/aa/big HTTP/1.1\r\nHost: x\r\n\r\n")
			time.Sleep(3 * time.Second)
			if n, err := io.Copy(io.Discard, conn); err == nil && n >= int64(len(big)) {
				t.Errorf("it waits for a client that takes nothing")
			}
		})
	}
	all.Wait()
	if _, err := c.Stat(t.Context(), "packs/aa/0"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("half an object: got %v, want %v", err, block.ErrNotFound)
	}
	if n := s.left("vms"); n != 0 {
		t.Errorf("%d parts are left", n)
	}
	if err := c.Create(t.Context(), "packs/aa/0", []byte("x")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// More requests than a client may have at once wait for a while, and are refused then. No other client feels it.
func TestTooManyRequests(t *testing.T) {
	s := newSite(t, "a=all,b=all", func(o *Options) { o.Stall = 6 * time.Second })
	s.made("a", "vms")
	var conns []*tls.Conn
	for n := range maxBusyOfOne {
		conn := s.dial("a")
		if _, err := fmt.Fprintf(conn, "PUT /v1/repositories/vms/objects/x/%d HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nIf-None-Match: *\r\nContent-Length: 10\r\n\r\n", n); err != nil {
			t.Fatal(err)
		}
		if answer, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || answer.StatusCode != 100 {
			t.Fatalf("request %d: %v, %v", n, answer, err)
		}
		conns = append(conns, conn)
	}
	if status, text := s.say("a", "GET /v1/repositories/vms HTTP/1.1\r\nHost: x\r\n\r\n"); status != 429 {
		t.Errorf("one more: %d %s", status, text)
	}
	if _, err := s.client("b", "vms").Stat(t.Context(), "config"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("another client: %v", err)
	}
	waits := make(chan error, 1)
	c := s.client("a", "vms")
	go func() {
		_, err := c.Stat(t.Context(), "x/0")
		waits <- err
	}()
	if _, err := io.WriteString(conns[0], "0123456789"); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil && !errors.Is(err, block.ErrNotFound) {
		t.Errorf("when one has ended: %v", err)
	}
}

// cutter passes bytes between a client and the host, and cuts each connection after some.
type cutter struct {
	listener net.Listener
	running  sync.WaitGroup
	left     func(toHost bool) int64 // negative: all
}

func newCutter(t *testing.T, to string, left func(toHost bool) int64) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &cutter{listener: listener, left: left}
	m.running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			host, err := net.Dial("tcp", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			pass := func(to, from net.Conn, n int64) {
				source := io.Reader(from)
				if n >= 0 {
					source = io.LimitReader(from, n)
				}
				_, _ = io.Copy(to, source) // a broken connection is what this is for
				_, _ = to.Close(), from.Close()
			}
			a, b := m.left(true), m.left(false)
			m.running.Go(func() { pass(host, client, a) })
			m.running.Go(func() { pass(client, host, b) })
		}
	})
	t.Cleanup(func() { _ = listener.Close(); m.running.Wait() })
	return m
}

// A connection that is cut at any byte costs a try: an object is there whole or not at all, and who stored it learns that it is.
func TestCutConnections(t *testing.T) {
	s := newSite(t, "admin=all", nil)
	s.made("admin", "vms")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 29))
	m := newCutter(t, s.address, func(toHost bool) int64 {
		mu.Lock()
		defer mu.Unlock()
		switch most := int64(8 << 10); {
		case rng.IntN(3) == 0:
			return -1
		case toHost:
			return rng.Int64N(700 << 10)
		default:
			return rng.Int64N(most)
		}
	})
	o := s.options("admin", "vms")
	o.Place, o.Tries, o.Stall = s.place(m.listener.Addr().String(), "vms"), 200, 2*time.Second
	c, direct := open(t, o), s.client("admin", "vms")
	for n := range 25 {
		key, data := fmt.Sprintf("packs/aa/%02d", n), bytes.Repeat([]byte{byte(n), byte(n >> 1)}, 150_000)
		if err := c.Create(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(data))
		if err := direct.ReadAt(t.Context(), key, got, 0); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("object %d differs: %v", n, err)
		}
		if err := c.ReadAt(t.Context(), key, got[:5000], 1000); err != nil || !bytes.Equal(got[:5000], data[1000:6000]) {
			t.Fatalf("a part of object %d differs: %v", n, err)
		}
		if err := c.Create(t.Context(), key, data[1:]); !errors.Is(err, block.ErrExists) {
			t.Fatalf("other bytes for object %d: %v", n, err)
		}
		if n%5 == 0 {
			if err := c.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := 0
	if err := c.List(t.Context(), "packs/", func(backend.Object) error { got++; return nil }); err != nil || got != 20 {
		t.Errorf("%d are listed, %v", got, err)
	}
}
