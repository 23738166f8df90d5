package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxPause bounds the pause between two tries.
const maxPause = 20 * time.Second

// try calls do until it succeeds, fails for good, or has failed too often.
func (s *S3) try(ctx context.Context, what string, do func() error) error {
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !temporary(err) {
			return fmt.Errorf("%s: %w", what, known(err))
		}
		if n >= s.o.Tries {
			return fmt.Errorf("%s: %w: given up after %d tries: %w", what, backend.ErrUnreachable, n, err)
		}
		if err := pause(ctx, s.o.Pause, n); err != nil {
			return err
		}
	}
}

// pause waits before another try: twice as long each time, and a random half of that, so that many who were refused together do not come back together.
func pause(ctx context.Context, first time.Duration, n int) error {
	d := min(first<<min(n-1, 16), maxPause)
	timer := time.NewTimer(d/2 + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// temporary reports whether another try may help: the connection failed, or the server says so.
func temporary(err error) bool {
	var untrusted *tls.CertificateVerificationError
	if errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrInvalid) || errors.Is(err, errAnswer) || errors.As(err, &untrusted) {
		return false
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return true
	}
	switch answer.Code {
	case "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ConditionalRequestConflict", "BadDigest":
		return true
	}
	switch answer.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// known gives answers of the server the names that callers test for.
func known(err error) error {
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return err
	}
	switch {
	case answer.Code == "NoSuchBucket":
		return fmt.Errorf("there is no bucket of that name, make it first: %w", block.ErrNotFound)
	case answer.StatusCode == http.StatusNotFound, answer.Code == minio.NoSuchKey:
		return block.ErrNotFound
	case answer.StatusCode == http.StatusPreconditionFailed:
		return block.ErrExists
	case answer.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return &block.CorruptError{Source: "object", Want: "as many bytes as are read", Got: "its end"}
	case answer.StatusCode == http.StatusForbidden, answer.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("the storage refuses it (%s): check the credentials and what they may do in the bucket: %w", answer.Code, fs.ErrPermission)
	case answer.StatusCode == http.StatusInsufficientStorage, answer.Code == "QuotaExceeded", answer.Code == "XMinioStorageFull":
		return fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	}
	return err
}
