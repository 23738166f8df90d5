package s3test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Gateway is a running server with one empty bucket.
type Gateway struct {
	Host           string // and port
	Bucket         string
	Access, Secret string
	Root           string // its folder, with a folder for the bucket: for what disks do to objects
}

// buildTime bounds the build of the server, which fetches its modules the first time: make does it before the tests, whose time it would take.
const buildTime = 15 * time.Minute

// program builds the server, once, and returns its path, which is in Go's cache.
var program = sync.OnceValues(func() (string, error) {
	_, here, _, _ := runtime.Caller(0)
	ctx, cancel := context.WithTimeout(context.Background(), buildTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", "versitygw")
	cmd.Dir = filepath.Join(filepath.Dir(here), "testdata", "versitygw")
	var says strings.Builder
	cmd.Stderr = &says
	path, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build versitygw: %w: %s", err, says.String())
	}
	return strings.TrimSpace(string(path)), nil
})

// Start starts a server that ends with the test. Where it cannot be built, for want of a network, the test is skipped; in CI, or with HV_REQUIRE_TOOLS set, it fails.
func Start(t *testing.T) *Gateway {
	t.Helper()
	g := &Gateway{Bucket: "backups"}
	g.start(t, func(root string) error { return os.Mkdir(filepath.Join(root, g.Bucket), 0o700) })
	return g
}

// StartLocking starts a server that keeps versions, and whose bucket has object lock. Else it is as Start.
func StartLocking(t *testing.T) *Gateway {
	t.Helper()
	g := &Gateway{Bucket: "vault"}
	g.start(t, func(string) error { return nil }, "--versioning-dir", t.TempDir())
	if err := g.Client(t).MakeBucket(t.Context(), g.Bucket, minio.MakeBucketOptions{ObjectLocking: true, Region: "us-east-1"}); err != nil {
		t.Fatalf("make a bucket with object lock: %v", err)
	}
	return g
}

// Client returns a client of the server, for what whoever has its keys may do to a repository.
func (g *Gateway) Client(t *testing.T) *minio.Client {
	t.Helper()
	c, err := minio.New(g.Host, &minio.Options{Creds: credentials.NewStaticV4(g.Access, g.Secret, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start starts the server on a new folder that prepare has made ready.
func (g *Gateway) start(t *testing.T, prepare func(root string) error, flags ...string) {
	t.Helper()
	path, err := program()
	switch {
	case err == nil:
	case os.Getenv("CI") != "" || os.Getenv("HV_REQUIRE_TOOLS") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	g.Host, g.Access, g.Secret = freeAddress(t), "test", "test-secret"
	root := t.TempDir()
	g.Root = root
	if err := prepare(root); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--quiet", "--port", g.Host, "posix", "--sidecar", t.TempDir()}, flags...)
	cmd := exec.Command(path, append(args, root)...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+g.Access, "ROOT_SECRET_KEY="+g.Secret)
	var says strings.Builder
	cmd.Stdout, cmd.Stderr = &says, &says
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", g.Host)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("versitygw ended: %v: %s", err, says.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("versitygw does not listen at %s", g.Host)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
