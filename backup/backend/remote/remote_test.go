package remote

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

// answering opens a repository at a host that answers as it is told.
func answering(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	a := certtest.New(t, "hosts")
	server := httptest.NewUnstartedServer(answer)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{a.Server()}, ClientCAs: a.Pool(), ClientAuth: tls.RequireAndVerifyClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	dir := t.TempDir()
	a.Store(dir, "client", a.Client("web1"))
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(Options{
		Place: Place{Host: host, Port: port, Name: "vms"}, Stall: 5 * time.Second, Pause: time.Millisecond, Tries: 3,
		Files: mutualtls.Files{Cert: filepath.Join(dir, "client-cert.pem"), Key: filepath.Join(dir, "client-key.pem"), CA: filepath.Join(dir, "ca-cert.pem")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// An answer that does not say what was asked for is an error, not a guess, and asked for once.
func TestWrongAnswers(t *testing.T) {
	const at = `"created":"2026-11-30T06:00:00Z"`
	stat := func(c *Client) error { _, err := c.Stat(t.Context(), "marks/a"); return err }
	list := func(c *Client) error {
		return c.List(t.Context(), "marks/", func(o backend.Object) error { t.Errorf("it lists %+v", o); return nil })
	}
	read := func(c *Client) error { return c.ReadAt(t.Context(), "marks/a", make([]byte, 2), 2) }
	keep := func(c *Client) error { _, err := c.Keep(t.Context()); return err }
	says := func(text string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { _, _ = io.WriteString(w, text) }
	}
	part := func(at, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", at)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, body)
		}
	}
	for what, c := range map[string]struct {
		ask    func(*Client) error
		answer func(http.ResponseWriter)
	}{
		"no JSON":                {stat, says("<html>")},
		"another object":         {stat, says(`{"key":"marks/b","sizeBytes":1,` + at + `}`)},
		"a negative length":      {stat, says(`{"key":"marks/a","sizeBytes":-1,` + at + `}`)},
		"no time":                {stat, says(`{"key":"marks/a","sizeBytes":1}`)},
		"a long answer":          {stat, says(`{"key":"` + strings.Repeat("a", maxAnswer) + `"}`)},
		"listed elsewhere":       {list, says(`{"objects":[{"key":"packs/a","sizeBytes":1,` + at + `}]}`)},
		"listed twice":           {list, says(`{"objects":[{"key":"marks/a","sizeBytes":1,` + at + `},{"key":"marks/a","sizeBytes":1,` + at + `}]}`)},
		"listed with no key":     {list, says(`{"objects":[{"key":"marks/../a","sizeBytes":1,` + at + `}]}`)},
		"more of nothing":        {list, says(`{"objects":[],"more":true}`)},
		"all and not a part":     {read, says("0123")},
		"another part":           {read, part("bytes 0-1/4", "01")},
		"a part of other length": {read, part("bytes 2-3/4", "234")},
		"a redirect": {stat, func(w http.ResponseWriter) {
			w.Header().Set("Location", "https://example.org/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}},
		"a millennium":  {keep, says(`{"rights":"all","keepSeconds":1e11}`)},
		"time backward": {keep, says(`{"rights":"all","keepSeconds":-1}`)},
	} {
		var asked atomic.Int32
		s := answering(t, func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); c.answer(w) })
		if err := c.ask(s); !errors.Is(err, errAnswer) || asked.Load() != 1 {
			t.Errorf("%s: asked %d times, got %v", what, asked.Load(), err)
		}
	}
}

// What a host cannot do for a while is asked for again, what it will not do is not.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
		asked  int32
	}{
		{404, CodeNotFound, block.ErrNotFound, 1},
		{412, CodeExists, block.ErrExists, 1},
		{409, CodeInUse, block.ErrInUse, 1},
		{507, CodeNoSpace, block.ErrNoSpace, 1},
		{413, CodeInvalid, block.ErrInvalid, 1},
		{416, CodeOutOfRange, block.ErrCorrupt, 1},
		{429, CodeBusy, backend.ErrUnreachable, 3},
		{500, CodeInternal, backend.ErrUnreachable, 3},
		{503, "", backend.ErrUnreachable, 3},
		{408, CodeCutOff, backend.ErrUnreachable, 3},
	} {
		var asked atomic.Int32
		s := answering(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				asked.Add(1)
			}
			w.WriteHeader(c.status)
			_, _ = fmt.Fprintf(w, `{"errors":[{"message":"on purpose","extensions":{"code":%q}}]}`, c.code)
		})
		if err := s.Create(t.Context(), "packs/aa/aa", make([]byte, 200_000)); !errors.Is(err, c.want) || asked.Load() != c.asked || !strings.Contains(err.Error(), "on purpose") {
			t.Errorf("status %d: asked %d times, got %v, want %v", c.status, asked.Load(), err, c.want)
		}
	}
}

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]Place{
		"hvd://backup.example/vms":  {"backup.example", DefaultPort, "vms"},
		"hvd://10.0.0.1:9000/v-1/":  {"10.0.0.1", "9000", "v-1"},
		"hvd://[2001:db8::1]:1/a.b": {"2001:db8::1", "1", "a.b"},
	} {
		got, err := ParsePlace(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
		if again, err := ParsePlace(got.String()); err != nil || again != want {
			t.Errorf("%s is shown as %s", text, got)
		}
	}
	for _, text := range []string{"hvd://", "hvd://host", "hvd://host/", "hvd:///vms", "hvd://host/a/b", "hvd://host/../x", "hvd://host/.x", "hvd://host/VMS", "hvd://host/a?b=c", "hvd://me:secret@host/vms", "http://host/vms", "hvd://ho\x00st/vms"} {
		if got, err := ParsePlace(text); !errors.Is(err, block.ErrInvalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %+v, %v, want %v", text, got, err, block.ErrInvalid)
		}
	}
}

func TestBefore(t *testing.T) {
	inOrder := []string{"config", "index", "index/a", "index/a/b", "index/b", "index.x", "packs/aa/0", "packs/aa/1", "packs/ab"}
	for i, a := range inOrder {
		for j, b := range inOrder {
			if Before(a, b) != (i < j) {
				t.Errorf("%s before %s: %v", a, b, Before(a, b))
			}
		}
	}
}
