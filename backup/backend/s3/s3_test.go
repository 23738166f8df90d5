package s3

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// options are those for a server, by way of host, with short pauses.
func options(g *s3test.Gateway, host, prefix string) Options {
	return Options{Place: Place{Host: host, Bucket: g.Bucket, Prefix: prefix}, Region: "us-east-1", Credentials: credentials.NewStaticV4(g.Access, g.Secret, ""), Stall: 2 * time.Second, Pause: time.Millisecond}
}

func open(t *testing.T, o Options) *S3 {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestS3(t *testing.T) {
	g := s3test.Start(t)
	ctx := context.Background()
	if _, err := Create(ctx, options(g, g.Host, "vms/one/")); err != nil {
		t.Fatal(err)
	}
	backendtest.Run(t, func(t *testing.T) backend.Backend { return open(t, options(g, g.Host, "vms/one/")) })
	if _, err := Create(ctx, options(g, g.Host, "vms/one/")); !errors.Is(err, block.ErrExists) {
		t.Errorf("a prefix with objects: got %v, want %v", err, block.ErrExists)
	}
	beside := open(t, options(g, g.Host, "vms/on"+"e2/"))
	if err := beside.List(ctx, "", func(o backend.Object) error { return errors.New(o.Key) }); err != nil {
		t.Errorf("beside the prefix there is %v", err)
	}
	o := options(g, g.Host, "")
	o.Credentials = credentials.NewStaticV4(g.Access, "wrong", "")
	if err := open(t, o).Create(ctx, "config", nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("wrong credentials: got %v, want %v", err, fs.ErrPermission)
	}
	o = options(g, g.Host, "")
	o.Place.Bucket = "none"
	if _, err := Create(ctx, o); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no bucket: got %v, want %v", err, block.ErrNotFound)
	}
}

// What the server or the network do wrong for a while is mended by other tries; what stays wrong is said.
func TestS3Faults(t *testing.T) {
	g := s3test.Start(t)
	p := s3test.NewProxy(t, g)
	s := open(t, options(g, p.Host, "x/"))
	ctx := context.Background()
	data := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	for name, f := range map[string]s3test.Fault{
		"429":        {Times: 3, Status: 429, Code: "TooManyRequests"},
		"503":        {Times: 3, Status: 503, Code: "SlowDown"},
		"hang":       {Times: 1, Hang: true},
		"lost":       {Times: 2, Lost: true},
		"unanswered": {Times: 1, Unanswered: true},
	} {
		t.Run(name, func(t *testing.T) {
			key := "packs/" + name
			p.Fail(f)
			if err := s.Create(ctx, key, data); err != nil || p.Failed() != f.Times {
				t.Fatalf("create: %v, and %d requests failed", err, p.Failed())
			}
			p.Fail(f)
			got := make([]byte, len(data))
			if err := s.ReadAt(ctx, key, got, 0); err != nil || !bytes.Equal(got, data) || p.Failed() != f.Times {
				t.Errorf("read: %v, and %d requests failed", err, p.Failed())
			}
			p.Fail(f)
			found := 0
			if err := s.List(ctx, key, func(backend.Object) error { found++; return nil }); err != nil || found != 1 {
				t.Errorf("list: %v, found %d", err, found)
			}
			// Other bytes: a server may refuse before it has read all, and reset the connection, and with the same bytes that would be taken for an earlier try.
			if err := s.Create(ctx, key, data[1:]); !errors.Is(err, block.ErrExists) {
				t.Errorf("once more: got %v, want %v", err, block.ErrExists)
			}
			p.Fail(s3test.Fault{})
			if err := s.Delete(ctx, key); err != nil {
				t.Error(err)
			}
		})
	}
	nobody := open(t, options(g, "127.0.0.1:1", "x/"))
	if _, err := nobody.Stat(ctx, "config"); !errors.Is(err, backend.ErrUnreachable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v, want %v", err, backend.ErrUnreachable)
	}
	p.Fail(s3test.Fault{Times: 100, Status: 403, Code: "AccessDenied"})
	if err := s.Create(ctx, "config", data); !errors.Is(err, fs.ErrPermission) || p.Failed() != 1 {
		t.Errorf("403: %v after %d tries, want %v after one", err, p.Failed(), fs.ErrPermission)
	}
	p.Fail(s3test.Fault{Times: 100, Status: 503, Code: "SlowDown"})
	if err := s.Create(ctx, "config", data); !errors.Is(err, backend.ErrUnreachable) || p.Failed() != 8 {
		t.Errorf("503 for ever: %v after %d tries, want %v after 8", err, p.Failed(), backend.ErrUnreachable)
	}
	p.Fail(s3test.Fault{Times: 1, Method: "PUT", Unanswered: true})
	other := open(t, options(g, g.Host, "x/"))
	if err := other.Create(ctx, "manifests/a", []byte("another's")); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, "manifests/a", data); !errors.Is(err, block.ErrExists) {
		t.Errorf("an answer is lost, and the object is another's: got %v, want %v", err, block.ErrExists)
	}
}

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]Place{
		"s3://backups":                          {amazon, true, "backups", ""},
		"s3://backups/vms/":                     {amazon, true, "backups", "vms/"},
		"s3+https://minio.lan:9000/backups/a/b": {"minio.lan:9000", true, "backups", "a/b/"},
		"s3+http://127.0.0.1:7070/backups":      {"127.0.0.1:7070", false, "backups", ""},
	} {
		got, err := ParsePlace(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
		if again, err := ParsePlace(got.String()); err != nil || again != want {
			t.Errorf("%s is shown as %s", text, got)
		}
	}
	for _, text := range []string{"s3://", "s3://a", "s3://b_c/d", "s3+https://host", "s3+https://host/", "s3://backups/../x", "s3://backups/a//b", "s3://backups?x=1", "https://host/bucket", "s3://key:secret@backups/x", "s3://back\x00ups"} {
		if got, err := ParsePlace(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q: got %+v, %v, want %v", text, got, err, block.ErrInvalid)
		}
	}
}
