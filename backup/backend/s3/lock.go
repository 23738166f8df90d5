package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
)

var _ backend.Locker = (*S3)(nil)

// lockMode is that of all locks: nobody ends one early, not even who owns the account. In the other mode, governance, whoever has a key that may do everything can, and that key is what locks are for.
const lockMode = minio.Compliance

// lockEnabled is what the storage says of a bucket that was made with object lock.
const lockEnabled = "Enabled"

// clockSlack is how far the clock of the storage may be behind this one when it refuses to delete.
const clockSlack = 15 * time.Minute

// CanLock implements backend.Locker.
func (s *S3) CanLock(ctx context.Context) error {
	state := ""
	err := s.try(ctx, "ask whether "+s.Location()+" has object lock", func() (err error) {
		state, _, _, _, err = s.client.GetObjectLockConfig(ctx, s.o.Place.Bucket)
		switch answerCode(err) {
		case "ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed", "InvalidRequest", "InvalidBucketState":
			state, err = "", nil
		}
		return err
	})
	if err == nil && state != lockEnabled {
		err = fmt.Errorf("%s: %w: its bucket was made without object lock; make another one with it", s.Location(), backend.ErrCannotLock)
	}
	return err
}

// answerCode is what the storage calls an error, "" if it is none of the storage.
func answerCode(err error) string {
	var answer minio.ErrorResponse
	if errors.As(err, &answer) {
		return answer.Code
	}
	return ""
}

// Lock implements backend.Locker.
func (s *S3) Lock(ctx context.Context, key string, until time.Time, spare time.Duration) (time.Time, error) {
	if err := backend.CheckKey(key); err != nil {
		return time.Time{}, err
	}
	mode, have, err := s.retention(ctx, key)
	if err != nil || mode == lockMode && !have.Before(until) {
		return have, err
	}
	until = until.Add(spare + time.Second - time.Nanosecond).UTC().Truncate(time.Second)
	if until.Before(have) {
		until = have.UTC()
	}
	mode = lockMode
	return until, s.try(ctx, fmt.Sprintf("lock object %s until %s", key, until.Format(time.RFC3339)), func() error {
		return s.client.PutObjectRetention(ctx, s.o.Place.Bucket, s.key(key), minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until})
	})
}

// LockedUntil implements backend.Locker.
func (s *S3) LockedUntil(ctx context.Context, key string) (time.Time, error) {
	if err := backend.CheckKey(key); err != nil {
		return time.Time{}, err
	}
	_, until, err := s.retention(ctx, key)
	return until, err
}

// What the storage says of the lock of an object, to whoever may know it.
const (
	lockModeHeader  = "X-Amz-Object-Lock-Mode"
	lockUntilHeader = "X-Amz-Object-Lock-Retain-Until-Date"
)

// retention asks for the lock of what is read under a key now.
func (s *S3) retention(ctx context.Context, key string) (mode minio.RetentionMode, until time.Time, err error) {
	err = s.try(ctx, "ask for the lock of object "+key, func() error {
		info, err := s.client.StatObject(ctx, s.o.Place.Bucket, s.key(key), minio.StatObjectOptions{})
		if err != nil {
			return err
		}
		mode, until, err = lockOf(key, info.Metadata.Get(lockModeHeader), info.Metadata.Get(lockUntilHeader))
		return err
	})
	return mode, until, err
}

// lockOf reads what the storage says of a lock, nothing if there is none.
func lockOf(key, mode, until string) (minio.RetentionMode, time.Time, error) {
	if mode == "" && until == "" {
		return "", time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, until)
	if m := minio.RetentionMode(mode); err == nil && m.IsValid() {
		return m, t, nil
	}
	return "", time.Time{}, fmt.Errorf("object %s is locked %q until %q, says the storage, or a proxy before it: %w", key, mode, until, errAnswer)
}

// maxLockAnswer bounds what is read of an answer about the lock of a version, bytes.
const maxLockAnswer = 64 << 10

// versionLock asks until when a version of an object is locked. Not every storage says that of one that is not read now with the object, so this is a request of its own; and some call the answer something else than minio-go
// wants, so it is read here.
func (s *S3) versionLock(ctx context.Context, key, version string) (until time.Time, err error) {
	err = s.try(ctx, "ask for the lock of a version of object "+key, func() error {
		u, err := s.client.Presign(ctx, http.MethodGet, s.o.Place.Bucket, s.key(key), 5*time.Minute, url.Values{"retention": {""}, "versionId": {version}})
		if err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return err
		}
		c := http.Client{Transport: s.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		resp, err := c.Do(r)
		if err != nil {
			var with *url.Error
			if errors.As(err, &with) {
				err = with.Err // the URL is signed
			}
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxLockAnswer))
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			answer := minio.ErrorResponse{Code: resp.Status}
			_ = xml.Unmarshal(body, &answer)
			if answer.StatusCode = resp.StatusCode; answer.Code == "NoSuchObjectLockConfiguration" {
				return nil
			}
			return answer
		}
		var answer struct{ Mode, RetainUntilDate string }
		if err := xml.Unmarshal(body, &answer); err != nil {
			return fmt.Errorf("what the storage, or a proxy before it, says of the lock of object %s: %w: %w", key, errAnswer, err)
		}
		_, until, err = lockOf(key, answer.Mode, answer.RetainUntilDate)
		return err
	})
	return until, err
}

// refused returns a backend.LockedError for an error of a delete if the object, or that version of it, is locked: kinds of storage say that in different ways, which may mean other things as well.
func (s *S3) refused(ctx context.Context, key, version string, err error) error {
	var answer minio.ErrorResponse
	if err == nil || !errors.As(err, &answer) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	var until time.Time
	var askErr error
	if version == "" {
		_, until, askErr = s.retention(ctx, key)
	} else {
		until, askErr = s.versionLock(ctx, key, version)
	}
	if askErr == nil && until.After(time.Now().Add(-clockSlack)) {
		return &backend.LockedError{Key: key, Until: until}
	}
	return err
}
