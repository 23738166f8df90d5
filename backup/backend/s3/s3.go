package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/retry"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/throttle"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// DefaultStall is how long a connection may be silent before another is tried.
const DefaultStall = time.Minute

// Options say where objects are and how to reach them.
type Options struct {
	Place
	Region      string                   // empty: asked for, or the default of the server
	Credentials *credentials.Credentials // who asks
	Limit       *throttle.Bucket         // that all bytes go through; nil: no limit
	Stall       time.Duration            // how long a connection may be silent; 0: DefaultStall
	Pause       time.Duration            // before the second try, doubled for each other one; 0: 250 ms
	Tries       int                      // of each request; 0: 8

	Again func(try int, err error) // is told of each try that failed before another; may be nil (retry.Policy)
}

// S3 is a prefix of a bucket.
type S3 struct {
	o         Options
	client    *minio.Client
	transport *http.Transport
}

var _ backend.Backend = (*S3)(nil)

// Open returns a bucket as a backend. It asks the server nothing yet.
func Open(o Options) (*S3, error) {
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	if o.Pause == 0 {
		o.Pause = retry.DefaultPause
	}
	if o.Tries == 0 {
		o.Tries = retry.DefaultTries
	}
	s := &S3{o: o, transport: newTransport(o.Stall, o.Limit)}
	var err error
	s.client, err = minio.New(o.Host, &minio.Options{Creds: o.Credentials, Secure: o.Secure, Region: o.Region, Transport: s.transport, MaxRetries: 1})
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", s.Location(), block.ErrInvalid, err)
	}
	return s, nil
}

// Create opens a place for a new repository: nothing may be under its prefix (block.ErrExists), and the storage must refuse to replace objects, which some kinds do not.
func Create(ctx context.Context, o Options) (*S3, error) {
	s, err := Open(o)
	if err != nil {
		return nil, err
	}
	err = s.List(ctx, "", func(backend.Object) error { return fmt.Errorf("%s is not empty: %w", s.Location(), block.ErrExists) })
	if err == nil {
		err = s.probe(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// probe stores an object twice.
func (s *S3) probe(ctx context.Context) error {
	key := "probes/" + hex.EncodeToString([]byte(rand.Text()))[:32]
	if err := s.Create(ctx, key, []byte("1")); err != nil {
		return err
	}
	err := s.Create(ctx, key, []byte("2"))
	if errors.Is(err, block.ErrExists) {
		err = nil
	} else if err == nil {
		err = fmt.Errorf("%s replaces objects although it is told not to (If-None-Match), so writers could destroy each other's; use another kind of storage", s.Location())
	}
	var locked *backend.LockedError
	if deleteErr := s.Delete(ctx, key); !errors.As(deleteErr, &locked) { // a bucket may lock all that is stored in it
		err = errors.Join(err, deleteErr)
	}
	return err
}

// Location returns the URL, which has no secret in it.
func (s *S3) Location() string { return s.o.Place.String() }

// Close closes idle connections.
func (s *S3) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// key is the key of an object in the bucket.
func (s *S3) key(key string) string { return s.o.Prefix + key }

// Create implements backend.Backend.
func (s *S3) Create(ctx context.Context, key string, data []byte) error {
	if err := backend.CheckKey(key); err != nil {
		return err
	}
	unanswered := false
	err := s.try(ctx, "store object "+key, func() error {
		o := minio.PutObjectOptions{DisableMultipart: true, SendContentMd5: true, ContentType: "application/octet-stream"}
		o.SetMatchETagExcept("*")
		_, err := s.client.PutObject(ctx, s.o.Place.Bucket, s.key(key), bytes.NewReader(data), int64(len(data)), o)
		if err != nil && !errors.Is(known(err), block.ErrExists) {
			unanswered = true
		}
		return err
	})
	if errors.Is(err, block.ErrExists) && unanswered && s.same(ctx, key, data) {
		return nil // it was this one's earlier try
	}
	return err
}

// same reports whether an object holds data.
func (s *S3) same(ctx context.Context, key string, data []byte) bool {
	o, err := s.Stat(ctx, key)
	if err != nil || o.SizeBytes != int64(len(data)) {
		return false
	}
	got := make([]byte, len(data))
	return s.ReadAt(ctx, key, got, 0) == nil && bytes.Equal(got, data)
}

// ReadAt implements backend.Backend.
func (s *S3) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if err := backend.CheckKey(key); err != nil {
		return err
	}
	if len(p) == 0 {
		_, err := s.Stat(ctx, key)
		return err
	}
	return s.try(ctx, fmt.Sprintf("read object %s at %d", key, off), func() error { return s.read(ctx, key, p, off) })
}

func (s *S3) read(ctx context.Context, key string, p []byte, off int64) error {
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+int64(len(p))-1); err != nil {
		return fmt.Errorf("%w: %w", block.ErrInvalid, err)
	}
	body, info, header, err := minio.Core{Client: s.client}.GetObject(ctx, s.o.Place.Bucket, s.key(key), o)
	if err != nil {
		return err
	}
	defer body.Close()
	if at := header.Get("Content-Range"); off > 0 && !strings.HasPrefix(at, fmt.Sprintf("bytes %d-", off)) {
		return fmt.Errorf("bytes from %d were asked for, and the storage, or a proxy before it, sends %q: %w", off, at, errAnswer)
	}
	if 0 <= info.Size && info.Size < int64(len(p)) {
		return &block.CorruptError{Source: "object " + key, Offset: off, Want: fmt.Sprintf("%d B", len(p)), Got: fmt.Sprint(info.Size)}
	}
	_, err = io.ReadFull(body, p)
	return err
}

// Stat implements backend.Backend.
func (s *S3) Stat(ctx context.Context, key string) (backend.Object, error) {
	o, _, err := s.stat(ctx, key)
	return o, err
}

// stat is Stat, with the version of the object: "" in a bucket that keeps none.
func (s *S3) stat(ctx context.Context, key string) (o backend.Object, version string, err error) {
	if err := backend.CheckKey(key); err != nil {
		return o, "", err
	}
	err = s.try(ctx, "object "+key, func() error {
		info, err := s.client.StatObject(ctx, s.o.Place.Bucket, s.key(key), minio.StatObjectOptions{})
		if err != nil {
			return err
		}
		version = info.VersionID
		o, err = object(key, info)
		return err
	})
	return o, version, err
}

// object is what the storage says of an object, if it says all that prunes and readers go by.
func object(key string, info minio.ObjectInfo) (backend.Object, error) {
	if info.Size < 0 || info.LastModified.Unix() <= 0 {
		return backend.Object{}, fmt.Errorf("object %s has a length of %d B and is of %v, says the storage, or a proxy before it: %w", key, info.Size, info.LastModified, errAnswer)
	}
	return backend.Object{Key: key, SizeBytes: info.Size, Created: info.LastModified}, nil
}

// errAnswer means that the storage answers something that it must not.
var errAnswer = errors.New("wrong answer")

// List implements backend.Backend. After an error it goes on behind the last key; tries are counted anew when it has come further, as a long listing is many requests.
func (s *S3) List(ctx context.Context, prefix string, visit func(backend.Object) error) error {
	after := ""
	var stop error
	list := func() error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the goroutine of the listing
		for info := range s.client.ListObjects(ctx, s.o.Place.Bucket, minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true, StartAfter: after}) {
			if info.Err != nil {
				return info.Err
			}
			after = info.Key
			key, ok := strings.CutPrefix(info.Key, s.o.Prefix)
			if !ok || backend.CheckKey(key) != nil {
				continue // somebody else's
			}
			o, err := object(key, info)
			if err != nil {
				return err
			}
			if stop = visit(o); stop != nil {
				return nil
			}
		}
		return ctx.Err()
	}
	for {
		further := false
		err := s.try(ctx, "list "+s.Location(), func() error {
			before := after
			err := list()
			if further = err != nil && after > before && temporary(err); further {
				return nil
			}
			return err
		})
		if further && err == nil {
			err = s.tries().Wait(ctx, 1)
		}
		if !further || err != nil {
			return errors.Join(stop, err)
		}
	}
}

// Delete implements backend.Backend. In a bucket that keeps versions all of the object's go, as a mark that it is deleted would give back no space. A backend.LockedError if it is locked.
func (s *S3) Delete(ctx context.Context, key string) error {
	_, version, err := s.stat(ctx, key) // the protocol does not say whether there was one
	if err != nil {
		return err
	}
	if version != "" {
		return s.deleteVersions(ctx, key)
	}
	err = s.try(ctx, "delete object "+key, func() error {
		return s.client.RemoveObject(ctx, s.o.Place.Bucket, s.key(key), minio.RemoveObjectOptions{})
	})
	return s.refused(ctx, key, "", err)
}
