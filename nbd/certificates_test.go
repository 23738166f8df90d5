package nbd

import (
	"os"
	"path/filepath"
	"testing"
)

// shortDir is a folder whose path can be part of a URI, which t.TempDir's cannot.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// tlsFiles are the options for a server folder made by store.
func tlsFiles(dir string) TLSOptions {
	return TLSOptions{
		CertFile: filepath.Join(dir, "server-cert.pem"), KeyFile: filepath.Join(dir, "server-key.pem"),
		ClientCAFile: filepath.Join(dir, "ca-cert.pem"),
	}
}
