package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/throttle"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// A bucket that keeps versions and has object lock is as good a place as any other.
func TestLockingBucket(t *testing.T) {
	g := s3test.StartLocking(t)
	if _, err := Create(t.Context(), options(g, g.Host, "vms/one/")); err != nil {
		t.Fatal(err)
	}
	backendtest.Run(t, func(t *testing.T) backend.Backend { return open(t, options(g, g.Host, "vms/one/")) })
	for info := range g.Client(t).ListObjects(t.Context(), g.Bucket, minio.ListObjectsOptions{Prefix: "vms/one/packs/ab/cd01", Recursive: true, WithVersions: true}) {
		t.Errorf("of what was deleted there is version %s still, %v", info.VersionID, info.Err)
	}
}

// What is locked cannot be deleted before its time, locks grow only, and after that time deletes give back the space.
func TestLock(t *testing.T) {
	g := s3test.StartLocking(t)
	ctx := t.Context()
	s := open(t, options(g, g.Host, "x/"))
	if err := s.CanLock(ctx); err != nil {
		t.Fatal(err)
	}
	data := []byte("what matters")
	if err := s.Create(ctx, "packs/a", data); err != nil {
		t.Fatal(err)
	}
	if until, err := s.LockedUntil(ctx, "packs/a"); err != nil || !until.IsZero() {
		t.Errorf("before it is locked: %v, %v", until, err)
	}
	end := time.Now().Add(5 * time.Second)
	until, err := s.Lock(ctx, "packs/a", end, 0)
	if err != nil || until.Before(end) || until.Sub(end) >= time.Second {
		t.Fatalf("lock until %v: until %v, %v", end, until, err)
	}
	for _, earlier := range []time.Time{end, end.Add(-3 * time.Second)} { // neither is another lock
		if again, err := s.Lock(ctx, "packs/a", earlier, time.Hour); err != nil || !again.Equal(until) {
			t.Errorf("lock until %v: until %v, want %v, error %v", earlier, again, until, err)
		}
	}
	if got, err := s.LockedUntil(ctx, "packs/a"); err != nil || !got.Equal(until) {
		t.Errorf("locked until %v, want %v, error %v", got, until, err)
	}
	var locked *backend.LockedError
	if err := s.Delete(ctx, "packs/a"); !errors.As(err, &locked) || !locked.Until.Equal(until) || !errors.Is(err, block.ErrInUse) {
		t.Errorf("delete: %v, want it refused until %v", err, until)
	}
	mode, sooner := lockMode, end.Add(-2*time.Second)
	for _, o := range []minio.PutObjectRetentionOptions{{Mode: &mode, RetainUntilDate: &sooner}, {}} { // what the storage itself says to whoever has all of its keys
		o.GovernanceBypass = true
		if err := g.Client(t).PutObjectRetention(ctx, g.Bucket, "x/packs/a", o); err == nil {
			t.Errorf("the lock was shortened to %+v", o)
		}
	}
	if err := s.Create(ctx, "packs/a", []byte("other")); !errors.Is(err, block.ErrExists) {
		t.Errorf("another object: %v, want %v", err, block.ErrExists)
	}
	longer, err := s.Lock(ctx, "packs/a", until.Add(time.Second), time.Second)
	if err != nil || !longer.Equal(until.Add(2*time.Second)) {
		t.Errorf("extended until %v, want %v, error %v", longer, until.Add(2*time.Second), err)
	}
	got := make([]byte, len(data))
	if err := s.ReadAt(ctx, "packs/a", got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %q, %v", got, err)
	}
	for _, key := range []string{"packs/none"} {
		if _, err := s.Lock(ctx, key, end, 0); !errors.Is(err, block.ErrNotFound) {
			t.Errorf("lock %s: %v, want %v", key, err, block.ErrNotFound)
		}
	}
	for deadline := longer.Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) { // for the lock's end
		if err = s.Delete(ctx, "packs/a"); err == nil || !errors.As(err, &locked) || time.Now().After(deadline) {
			break
		}
	}
	if err != nil || time.Now().Before(longer.Add(-time.Second)) {
		t.Errorf("delete after the lock: %v, at %v, locked until %v", err, time.Now(), longer)
	}
	for info := range g.Client(t).ListObjects(ctx, g.Bucket, minio.ListObjectsOptions{Prefix: "x/packs/a", Recursive: true, WithVersions: true}) {
		t.Errorf("version %s is there still, %v", info.VersionID, info.Err)
	}
}

// Whoever has the keys of the storage can hide what is locked, by a mark that it is deleted or by another object, and no more: it is found and uncovered.
func TestHidden(t *testing.T) {
	g := s3test.StartLocking(t)
	ctx, c := t.Context(), g.Client(t)
	s := open(t, options(g, g.Host, "x/"))
	put := func(key, text string, o minio.PutObjectOptions) {
		t.Helper()
		o.DisableMultipart, o.SendContentMd5 = true, true
		if _, err := c.PutObject(ctx, g.Bucket, "x/"+key, strings.NewReader(text), int64(len(text)), o); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(key string) {
		t.Helper()
		if err := c.RemoveObject(ctx, g.Bucket, "x/"+key, minio.RemoveObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	until := time.Now().Add(time.Hour)
	for _, key := range []string{"packs/deleted", "packs/replaced", "packs/both", "packs/locked", "packs/whole", "packs/unlocked"} {
		if err := s.Create(ctx, key, []byte("genuine "+key)); err != nil {
			t.Fatal(err)
		}
		if key == "packs/unlocked" {
			continue
		}
		if _, err := s.Lock(ctx, key, until, 0); err != nil {
			t.Fatal(err)
		}
	}
	remove("packs/deleted")
	remove("packs/unlocked")
	put("packs/replaced", "forged", minio.PutObjectOptions{})
	put("packs/both", "forged", minio.PutObjectOptions{})
	remove("packs/both")
	put("packs/locked", "forged", minio.PutObjectOptions{Mode: minio.Compliance, RetainUntilDate: until.Add(time.Hour)})
	want := map[string]bool{"packs/deleted": true, "packs/replaced": false, "packs/both": true, "packs/locked": false}
	var all []backend.Hidden
	if err := s.Hidden(ctx, "packs/", func(h backend.Hidden) error { all = append(all, h); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		deleted, ok := want[h.Key]
		if !ok || deleted != h.Deleted || h.LockedUntil.Before(until) || h.SizeBytes != int64(len("genuine "+h.Key)) {
			t.Errorf("hidden: %+v", h)
		}
	}
	if len(all) != len(want) {
		t.Errorf("%d objects are hidden, found %+v", len(want), all)
	}
	for _, h := range all {
		if err := s.Uncover(ctx, h); err != nil {
			t.Errorf("uncover %s: %v", h.Key, err)
		}
		genuine := "genuine " + h.Key
		got := make([]byte, len(genuine))
		if err := s.ReadAt(ctx, h.Key, got, 0); err != nil || string(got) != genuine {
			t.Errorf("%s is %q, %v", h.Key, got, err)
		}
		if until, err := s.LockedUntil(ctx, h.Key); err != nil || until.Before(h.LockedUntil) {
			t.Errorf("%s is locked until %v, want %v, %v", h.Key, until, h.LockedUntil, err)
		}
	}
	if err := s.Hidden(ctx, "packs/", func(h backend.Hidden) error { return errors.New(h.Key) }); err != nil {
		t.Errorf("hidden still: %v", err)
	}
	if err := s.Uncover(ctx, backend.Hidden{Object: backend.Object{Key: "packs/none"}, Version: "x"}); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("uncover nothing: %v", err)
	}
}

// Where nothing can be locked, that is the answer, before anything is stored.
func TestCannotLock(t *testing.T) {
	g := s3test.Start(t)
	ctx := t.Context()
	s := open(t, options(g, g.Host, "x/"))
	if err := s.CanLock(ctx); !errors.Is(err, backend.ErrCannotLock) {
		t.Errorf("a bucket without object lock: %v, want %v", err, backend.ErrCannotLock)
	}
	o := options(g, g.Host, "x/")
	o.Place.Bucket = "none"
	if err := open(t, o).CanLock(ctx); !errors.Is(err, block.ErrNotFound) || errors.Is(err, backend.ErrCannotLock) {
		t.Errorf("no bucket: %v, want %v", err, block.ErrNotFound)
	}
	if _, err := backend.LockerOf(new(backendtest.Memory)); !errors.Is(err, backend.ErrCannotLock) {
		t.Errorf("a backend that cannot: %v, want %v", err, backend.ErrCannotLock)
	}
	if l, err := backend.LockerOf(throttle.Limit(s, throttle.NewBucket(1<<20))); err != nil || l != backend.Locker(s) {
		t.Errorf("behind a limit: %v, %v", l, err)
	}
}

// Answers about locks that versitygw does not give: of other kinds of storage, and wrong ones.
func TestLockAnswers(t *testing.T) {
	fail := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>on purpose</Message></Error>")
		}
	}
	xml := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
	}
	head := func(mode, until string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("Last-Modified", "Sun, 29 Nov 2026 03:00:00 GMT")
			h.Set("Content-Length", "1")
			h.Set("X-Amz-Version-Id", "v1")
			for name, value := range map[string]string{lockModeHeader: mode, lockUntilHeader: until} {
				if value != "" {
					h.Set(name, value)
				}
			}
		}
	}
	can := func(s *S3) error { return s.CanLock(context.Background()) }
	ask := func(s *S3) error { _, err := s.LockedUntil(context.Background(), "packs/a"); return err }
	for what, c := range map[string]struct {
		ask    func(*S3) error
		answer http.HandlerFunc
		want   error
	}{
		"it does not know of locks":     {can, fail(http.StatusNotImplemented, "NotImplemented"), backend.ErrCannotLock},
		"it is told to be off":          {can, xml("<ObjectLockConfiguration></ObjectLockConfiguration>"), backend.ErrCannotLock},
		"a lock without an end":         {ask, head("COMPLIANCE", ""), errAnswer},
		"a lock that ends some time":    {ask, head("COMPLIANCE", "tomorrow"), errAnswer},
		"a lock of an unknown kind":     {ask, head("MAYBE", "2027-01-01T00:00:00Z"), errAnswer},
		"there is no such object":       {ask, fail(http.StatusNotFound, "NoSuchKey"), block.ErrNotFound},
		"it is locked, and in the past": {ask, head("COMPLIANCE", "2020-01-01T00:00:00.000Z"), nil},
	} {
		if err := c.ask(answering(t, httptest.NewServer, c.answer)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", what, err, c.want)
		}
	}
	// Amazon refuses a delete of what is locked as it refuses whoever has no right to delete: which it is, the lock says.
	for _, lock := range []string{"", "2099-01-01T00:00:00Z", "2020-01-01T00:00:00Z"} {
		s := answering(t, httptest.NewServer, func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			switch {
			case r.Method == http.MethodHead:
				head("", "")(w, r)
			case q.Has("retention") && lock == "":
				fail(http.StatusNotFound, "NoSuchObjectLockConfiguration")(w, r)
			case q.Has("retention"):
				xml("<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>"+lock+"</RetainUntilDate></Retention>")(w, r)
			case q.Has("versions"):
				xml(`<ListVersionsResult><Name>backups</Name><IsTruncated>false</IsTruncated><Version><Key>packs/a</Key><VersionId>v1</VersionId><IsLatest>true</IsLatest><Size>1</Size><LastModified>2026-11-29T03:00:00.000Z</LastModified></Version></ListVersionsResult>`)(w, r)
			default:
				fail(http.StatusForbidden, "AccessDenied")(w, r)
			}
		})
		err := s.Delete(t.Context(), "packs/a")
		var locked *backend.LockedError
		if errors.As(err, &locked) != strings.HasPrefix(lock, "2099") || err == nil {
			t.Errorf("a delete is refused, and the lock ends %q: %v", lock, err)
		}
	}
}
