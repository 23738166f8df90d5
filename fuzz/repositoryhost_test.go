package fuzz

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/host"
)

// patientRecorder has the deadlines of a connection.
type patientRecorder struct{ *httptest.ResponseRecorder }

// SetReadDeadline is for http.ResponseController.
func (patientRecorder) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is for http.ResponseController.
func (patientRecorder) SetWriteDeadline(time.Time) error { return nil }

// FuzzRepositoryHost asks a host of repositories for whatever a client with all rights may: nothing comes to be but objects under keys that may be, and nothing that is not in a repository is answered.
func FuzzRepositoryHost(f *testing.F) {
	for _, seed := range []struct {
		method                 uint8
		path, query, part      string
		body                   []byte
		length                 int64
		conditional, rewritten bool
	}{
		{0, "/v1/repositories/vms", "", "", nil, 0, false, false},
		{0, "/v1/repositories/vms/objects/packs/ab/abcd", "", "", []byte("0123"), 4, true, false},
		{1, "/v1/repositories/vms/objects/config", "", "bytes=0-3", nil, 0, false, false},
		{1, "/v1/repositories/vms/objects", "prefix=packs/&after=packs/aa", "", nil, 0, false, false},
		{1, "/v1/repositories/vms/stat/config", "hash=sha-256", "", nil, 0, false, false},
		{2, "/v1/repositories/vms/objects/../../../canary", "", "", nil, 0, false, true},
	} {
		f.Add(seed.method, seed.path, seed.query, seed.part, seed.body, seed.length, seed.conditional, seed.rewritten)
	}
	rules, err := access.ParseRules("admin=all")
	if err != nil {
		f.Fatal(err)
	}
	leaf := &x509.Certificate{Subject: pkix.Name{CommonName: "admin"}}
	secured := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
	f.Fuzz(func(t *testing.T, method uint8, path, query, part string, body []byte, length int64, conditional, raw bool) {
		outside := t.TempDir()
		root := filepath.Join(outside, "repositories")
		for _, dir := range []string{root, filepath.Join(root, "vms")} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for _, file := range []string{filepath.Join(outside, "canary"), filepath.Join(root, "vms", "config")} {
			if err := os.WriteFile(file, []byte("the canary sings"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := &http.Request{
			Method: []string{http.MethodPut, http.MethodGet, http.MethodDelete, http.MethodPost}[method%4], URL: &url.URL{Path: path, RawQuery: query}, Host: "x", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: length, TLS: secured,
		}
		if raw {
			r.URL.RawPath = path
		}
		if part != "" {
			r.Header.Set("Range", part)
		}
		if conditional {
			r.Header.Set("If-None-Match", "*")
		}
		w := patientRecorder{httptest.NewRecorder()}
		host.New(host.Options{Dir: root, Rules: rules}).ServeHTTP(w, r)
		if text, err := os.ReadFile(filepath.Join(outside, "canary")); err != nil || string(text) != "the canary sings" {
			t.Fatalf("%s %q: the canary is %q, %v", r.Method, path, text, err)
		}
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 2 {
			t.Fatalf("%s %q: outside there is %v, %v", r.Method, path, entries, err)
		}
		err := filepath.WalkDir(root, func(file string, e os.DirEntry, err error) error {
			name, key, deep := strings.Cut(strings.TrimPrefix(file, root+"/"), "/")
			if err == nil && file != root && (access.CheckName(name) != nil || !e.IsDir() && (!deep || backend.CheckKey(key) != nil)) {
				t.Errorf("%s %q makes %q", r.Method, path, file)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}
