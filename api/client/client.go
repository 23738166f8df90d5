package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Khan/genqlient/graphql"
	"github.com/vektah/gqlparser/v2/gqlerror"
)

// Client is a connection to one hvd. All methods may be called at once.
type Client struct {
	http     *http.Client
	base     string // http://HOST
	endpoint string // as the user wrote it
	token    string
	graphql  graphql.Client
}

var _ graphql.Client = (*Client)(nil)

// connectTime bounds how long a connection may take to come about.
const connectTime = 10 * time.Second

// New returns a client of unix:PATH or http://HOST:PORT. token is needed for the latter. Nothing is connected yet.
func New(endpoint, token string) (*Client, error) {
	c := &Client{endpoint: endpoint, token: token}
	transport := &http.Transport{
		WriteBufferSize: 256 << 10,
		ReadBufferSize:  256 << 10,
		// A refused import is heard of before its data is sent.
		ExpectContinueTimeout: connectTime,
		MaxIdleConns:          4,
		IdleConnTimeout:       time.Minute,
	}
	dialer := &net.Dialer{Timeout: connectTime}
	if path, ok := strings.CutPrefix(endpoint, "unix:"); ok && path != "" {
		c.base = "http://hvd"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
	} else if u, err := url.Parse(endpoint); err == nil && u.Scheme == "http" && u.Host != "" && strings.Trim(u.Path, "/") == "" {
		c.base = "http://" + u.Host
		transport.DialContext = dialer.DialContext
	} else {
		return nil, &Error{Code: CodeInvalid, Message: fmt.Sprintf("endpoint %q: want unix:PATH or http://HOST:PORT", endpoint)}
	}
	c.http = &http.Client{Transport: transport}
	c.graphql = graphql.NewClient(c.base+"/graphql", doer{c})
	return c, nil
}

// Endpoint is what New was given.
func (c *Client) Endpoint() string { return c.endpoint }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// MakeRequest implements graphql.Client. Its errors are of type *Error where hvd answered.
func (c *Client) MakeRequest(ctx context.Context, request *graphql.Request, response *graphql.Response) error {
	return translate(c.graphql.MakeRequest(ctx, request, response))
}

// doer adds the token to the requests of genqlient.
type doer struct{ c *Client }

func (d doer) Do(r *http.Request) (*http.Response, error) { return d.c.do(r) }

func (c *Client) do(r *http.Request) (*http.Response, error) {
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(r)
	var urlError *url.Error
	if cause := context.Cause(r.Context()); err != nil && cause != nil {
		return nil, cause
	}
	if errors.As(err, &urlError) {
		return nil, &UnreachableError{c.endpoint, urlError.Err}
	}
	return response, err
}

// Codes that callers tell apart; api/errors.go has them all.
const (
	CodeInvalid         = "INVALID"
	CodeNotFound        = "NOT_FOUND"
	CodeExists          = "EXISTS"
	CodeInUse           = "IN_USE"
	CodeProtected       = "PROTECTED"
	CodeRefused         = "REFUSED"
	CodeReadOnly        = "READ_ONLY"
	CodeForbidden       = "FORBIDDEN"
	CodeUnauthenticated = "UNAUTHENTICATED"
	CodeNoSpace         = "NO_SPACE"
	CodeBusy            = "BUSY"
)

// Error is what hvd said.
type Error struct {
	Code    string
	Message string
}

// Error is hvd's own text.
func (e *Error) Error() string { return e.Message }

// UnreachableError means that nobody answered at the endpoint.
type UnreachableError struct {
	Endpoint string
	Cause    error
}

// Error says where nobody answered, and why.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no hvd at %s: %v", e.Endpoint, e.Cause)
}

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Cause }

// translate makes one *Error of what genqlient found in a reply.
func translate(err error) error {
	if err == nil {
		return nil
	}
	var httpError *graphql.HTTPError
	if errors.As(err, &httpError) {
		if len(httpError.Response.Errors) > 0 {
			return first(httpError.Response.Errors)
		}
		return &Error{Message: fmt.Sprintf("hvd answered with HTTP status %d", httpError.StatusCode)}
	}
	var list gqlerror.List
	if errors.As(err, &list) && len(list) > 0 {
		return first(list)
	}
	return err
}

// first takes the first error: the commands ask for one thing at a time.
func first(list gqlerror.List) *Error {
	code, _ := list[0].Extensions["code"].(string)
	return &Error{Code: code, Message: list[0].Message}
}

// problem reads an error of an endpoint that is not GraphQL.
func problem(status int, body io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(body, 64<<10))
	if err != nil {
		return fmt.Errorf("read the answer of hvd (HTTP status %d): %w", status, err)
	}
	var reply struct{ Errors gqlerror.List }
	if json.Unmarshal(text, &reply) == nil && len(reply.Errors) > 0 {
		return first(reply.Errors)
	}
	return &Error{Message: fmt.Sprintf("hvd answered with HTTP status %d: %s", status, strings.TrimSpace(string(text)))}
}
