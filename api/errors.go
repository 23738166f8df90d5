package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"github.com/99designs/gqlgen/graphql"
	"github.com/vektah/gqlparser/v2/gqlerror"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

var (
	errForbidden       = errors.New("not allowed")
	errUnauthenticated = errors.New("not authenticated")
	errBusy            = errors.New("too many at once")
)

// codes are the errors that callers can tell apart, each with its HTTP status. The first that matches counts. Codes are part of the API.
var codes = []struct {
	err    error
	code   string
	status int
}{
	{errUnauthenticated, "UNAUTHENTICATED", http.StatusUnauthorized},
	{errForbidden, "FORBIDDEN", http.StatusForbidden},
	{errBusy, "BUSY", http.StatusTooManyRequests},
	{block.ErrCorrupt, "CORRUPT", http.StatusInternalServerError},
	{block.ErrNoSpace, "NO_SPACE", http.StatusInsufficientStorage},
	{control.ErrRefused, "REFUSED", http.StatusConflict},
	{block.ErrProtected, "PROTECTED", http.StatusConflict},
	{block.ErrInUse, "IN_USE", http.StatusConflict},
	{block.ErrExists, "EXISTS", http.StatusConflict},
	{block.ErrNotFound, "NOT_FOUND", http.StatusNotFound},
	{block.ErrReadOnly, "READ_ONLY", http.StatusConflict},
	{block.ErrOutOfRange, "OUT_OF_RANGE", http.StatusBadRequest},
	{block.ErrVersion, "VERSION", http.StatusBadRequest},
	{transfer.ErrCut, "CUT_OFF", http.StatusBadRequest},
	{block.ErrInvalid, "INVALID", http.StatusBadRequest},
	{block.ErrClosed, "CLOSED", http.StatusServiceUnavailable},
	{context.DeadlineExceeded, "TIMEOUT", http.StatusServiceUnavailable},
	{context.Canceled, "CANCELED", http.StatusServiceUnavailable},
}

// codeOf returns the code and HTTP status of an error.
func codeOf(err error) (code string, status int) {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code, c.status
		}
	}
	var remote *transfer.RemoteError
	if errors.As(err, &remote) {
		return "CUT_OFF", http.StatusBadRequest
	}
	return "INTERNAL", http.StatusInternalServerError
}

// present puts the code into a GraphQL error. Errors of gqlgen itself have one already.
func present(log *slog.Logger) graphql.ErrorPresenterFunc {
	return func(ctx context.Context, err error) *gqlerror.Error {
		presented := graphql.DefaultErrorPresenter(ctx, err)
		if presented.Extensions["code"] != nil {
			return presented
		}
		code := "INVALID" // what gqlgen finds wrong with a request
		if cause := presented.Unwrap(); cause != nil {
			code, _ = codeOf(cause)
		}
		if code == "INTERNAL" {
			log.Error("request failed", "path", presented.Path.String(), "error", err)
		}
		if presented.Extensions == nil {
			presented.Extensions = map[string]any{}
		}
		presented.Extensions["code"] = code
		return presented
	}
}

// fault is an error in the shape that GraphQL gives it; the other endpoints use it too.
type fault struct {
	Message    string            `json:"message"`
	Extensions map[string]string `json:"extensions"`
}

// fail answers a request with an error.
func fail(w http.ResponseWriter, err error) {
	code, status := codeOf(err)
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="hvd"`)
	}
	reply(w, status, map[string][]fault{"errors": {{err.Error(), map[string]string{"code": code}}}})
}

// reply answers a request with JSON.
func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client has gone; net/http closes the connection
}
