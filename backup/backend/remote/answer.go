package remote

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// errAnswer means that a host answers something that it must not.
var errAnswer = errors.New("wrong answer")

// answer is an error that a host has said.
type answer struct {
	status  int
	code    string // empty if it was none of a host
	message string
}

// Error is the host's own text.
func (a *answer) Error() string {
	if a.message == "" {
		return fmt.Sprintf("the host answers with HTTP status %d", a.status)
	}
	return "the host says: " + a.message
}

// maxMessage bounds the text of an error, bytes.
const maxMessage = 8 << 10

func readAnswer(r *http.Response) error {
	a := &answer{status: r.StatusCode}
	text, err := io.ReadAll(io.LimitReader(r.Body, maxMessage))
	if err != nil {
		return err
	}
	var fault Fault
	if json.Unmarshal(text, &fault) == nil && len(fault.Errors) > 0 {
		a.code, a.message = fault.Errors[0].Extensions["code"], fault.Errors[0].Message
	}
	return a
}

// plain is an error of package http without the request's address, which says nothing to the user.
func plain(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// alert reports whether the host has ended a handshake: what this client shows is not accepted.
func alert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// temporary reports whether another try may help: the connection failed, or the host says so.
func temporary(err error) bool {
	var untrusted *tls.CertificateVerificationError
	if errors.Is(err, block.ErrInvalid) || errors.Is(err, errAnswer) || errors.As(err, &untrusted) || alert(err) {
		return false
	}
	var said *answer
	if !errors.As(err, &said) {
		return true
	}
	switch said.status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// known gives answers of a host the names that callers test for.
func known(err error) error {
	if alert(err) {
		return fmt.Errorf("the host does not accept the certificate of this client (%v): it must be of the authorities in the host's repository.ca, for clients, and not have ended: %w", err, fs.ErrPermission)
	}
	var said *answer
	if !errors.As(err, &said) {
		return err
	}
	switch said.code {
	case CodeNotFound:
		return fmt.Errorf("%w: %w", err, block.ErrNotFound)
	case CodeExists:
		return fmt.Errorf("%w: %w", err, block.ErrExists)
	case CodeInUse:
		return fmt.Errorf("%w: %w", err, block.ErrInUse)
	case CodeNoSpace:
		return fmt.Errorf("%w: %w", err, block.ErrNoSpace)
	case CodeForbidden, CodeUnauthenticated:
		return fmt.Errorf("%w: %w", err, fs.ErrPermission)
	case CodeOutOfRange:
		return fmt.Errorf("%w: %w", err, &block.CorruptError{Source: "object", Want: "as many bytes as are read", Got: "its end"})
	case CodeInvalid:
		return fmt.Errorf("%w: %w", err, block.ErrInvalid)
	}
	if said.status/100 == 3 {
		return fmt.Errorf("%w, a redirect, which is not followed: %w", err, errAnswer)
	}
	return err
}
