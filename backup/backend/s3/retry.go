package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/retry"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// tries says how often to ask.
func (s *S3) tries() retry.Policy {
	return retry.Policy{Tries: s.o.Tries, Pause: s.o.Pause, Temporary: temporary, Known: known, Again: s.o.Again}
}

// try calls do until it succeeds, fails for good, or has failed too often.
func (s *S3) try(ctx context.Context, what string, do func() error) error {
	return s.tries().Do(ctx, what, do)
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
