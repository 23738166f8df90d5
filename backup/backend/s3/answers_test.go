package s3

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
)

// answering opens a storage that answers as it is told.
func answering(t *testing.T, start func(http.Handler) *httptest.Server, answer http.HandlerFunc) *S3 {
	t.Helper()
	server := start(answer)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	return open(t, Options{Place: Place{Host: server.Listener.Addr().String(), Secure: server.TLS != nil, Bucket: "backups"}, Region: "us-east-1", Credentials: credentials.NewStaticV4("a", "b", ""), Stall: 5 * time.Second, Pause: time.Millisecond, Tries: 3})
}

// An answer that does not say what prunes and readers go by is an error, not a guess, and asked for once.
func TestWrongAnswers(t *testing.T) {
	const modified = "Sun, 29 Nov 2026 03:00:00 GMT"
	listing := func(w http.ResponseWriter, object string) {
		_, _ = io.WriteString(w, `<ListBucketResult><Name>backups</Name><IsTruncated>false</IsTruncated><Contents><Key>marks/a</Key>`+object+`</Contents></ListBucketResult>`)
	}
	stat := func(s *S3) error { _, err := s.Stat(t.Context(), "marks/a"); return err }
	list := func(s *S3) error {
		return s.List(t.Context(), "marks/", func(o backend.Object) error { t.Errorf("it is listed as %+v", o); return nil })
	}
	for what, c := range map[string]struct {
		ask    func(*S3) error
		answer func(http.ResponseWriter)
	}{
		"no length": {stat, func(w http.ResponseWriter) {
			w.Header().Set("Last-Modified", modified)
			w.Header().Set("Transfer-Encoding", "chunked")
		}},
		"the time 0": {stat, func(w http.ResponseWriter) {
			w.Header().Set("Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT")
			w.Header().Set("Content-Length", "1")
		}},
		"listed without a time": {list, func(w http.ResponseWriter) { listing(w, "<Size>1</Size>") }},
		"listed with a negative length": {list, func(w http.ResponseWriter) {
			listing(w, "<Size>-1</Size><LastModified>2026-11-29T03:00:00.000Z</LastModified>")
		}},
		"another range": {func(s *S3) error { return s.ReadAt(t.Context(), "marks/a", make([]byte, 2), 2) }, func(w http.ResponseWriter) {
			w.Header().Set("Last-Modified", modified)
			_, _ = io.WriteString(w, "0123")
		}},
	} {
		asked := 0
		s := answering(t, httptest.NewServer, func(w http.ResponseWriter, _ *http.Request) { asked++; c.answer(w) })
		if err := c.ask(s); !errors.Is(err, errAnswer) || asked != 1 {
			t.Errorf("%s: asked %d times, got %v", what, asked, err)
		}
	}
}

// A listing of many pages, each of which fails once, comes to its end: tries are those of a page.
func TestListingOfManyPages(t *testing.T) {
	const keys = "abcdefgh"
	failed := make(map[string]bool)
	s := answering(t, httptest.NewServer, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		after := strings.TrimPrefix(cmp.Or(q.Get("continuation-token"), q.Get("start-after")), "marks/")
		if !failed[after] {
			failed[after] = true
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		n := 0
		if after != "" {
			n = strings.Index(keys, after) + 1
		}
		fmt.Fprintf(w, `<ListBucketResult><Name>backups</Name><IsTruncated>%v</IsTruncated><NextContinuationToken>marks/%c</NextContinuationToken><Contents><Key>marks/%c</Key><Size>1</Size><LastModified>2026-11-29T03:00:00.000Z</LastModified></Contents></ListBucketResult>`, n+1 < len(keys), keys[n], keys[n])
	})
	got := ""
	if err := s.List(t.Context(), "marks/", func(o backend.Object) error { got += o.Key[len("marks/"):]; return nil }); err != nil || got != keys {
		t.Errorf("listed %q, %v", got, err)
	}
}

// A server whose certificate nobody vouches for is not asked again, and a redirect to another place is not followed: neither learns anything.
func TestStrangers(t *testing.T) {
	asked := 0
	s := answering(t, httptest.NewTLSServer, func(http.ResponseWriter, *http.Request) { asked++ })
	var untrusted *tls.CertificateVerificationError
	if err := s.Create(context.Background(), "config", []byte("x")); !errors.As(err, &untrusted) || strings.Contains(err.Error(), "tries") || asked != 0 {
		t.Errorf("a certificate of its own: asked %d times, got %v", asked, err)
	}
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer other.Close()
	s = answering(t, httptest.NewServer, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	if err := s.Create(context.Background(), "config", []byte("x")); err == nil || asked != 0 {
		t.Errorf("a redirect: %d requests went elsewhere, got %v", asked, err)
	}
}
