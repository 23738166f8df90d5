package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/retry"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/throttle"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

// DefaultStall is how long a connection may be silent before another is tried.
const DefaultStall = time.Minute

// Options say where objects are and how to reach them.
type Options struct {
	Place
	Files mutualtls.Files  // who asks, and who signs the certificates of hosts
	Limit *throttle.Bucket // that all bytes go through; nil: no limit
	Stall time.Duration    // how long a connection may be silent; 0: DefaultStall
	Pause time.Duration    // before the second try, doubled for each other one; 0: retry.DefaultPause
	Tries int              // of each request; 0: retry.DefaultTries

	Again func(try int, err error) // is told of each try that failed before another; may be nil (retry.Policy)
}

// Client is a repository at a host.
type Client struct {
	o     Options
	http  *http.Client
	base  string
	tries retry.Policy
}

var (
	_ backend.Backend = (*Client)(nil)
	_ backend.Keeper  = (*Client)(nil)
	_ backend.Quoter  = (*Client)(nil)
)

// Open returns a repository at a host as a backend. It reads the files, whose key must be nobody else's, and asks the host nothing yet.
func Open(o Options) (*Client, error) {
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	if o.Pause == 0 {
		o.Pause = retry.DefaultPause
	}
	if o.Tries == 0 {
		o.Tries = retry.DefaultTries
	}
	if err := mutualtls.Private(o.Files.Key); err != nil {
		return nil, fmt.Errorf("key of the certificate for %s: %w", o.Place, err)
	}
	secured, err := o.Files.ClientConfig(o.Host)
	if err != nil {
		return nil, fmt.Errorf("certificates for %s: %w", o.Place, err)
	}
	c := &Client{o: o, base: "https://" + o.Address(), tries: retry.Policy{Tries: o.Tries, Pause: o.Pause, Temporary: temporary, Known: known, Again: o.Again}}
	c.http = &http.Client{
		Transport:     newTransport(o, secured),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Create has the host make a place for a new repository, and opens it. One with something in it is block.ErrExists.
func Create(ctx context.Context, o Options) (*Client, error) {
	c, err := Open(o)
	if err != nil {
		return nil, err
	}
	if err := c.ask(ctx, "make "+c.Location(), request{method: http.MethodPut, path: RepositoryPath(o.Name)}, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Location returns the URL, which has no secret in it.
func (c *Client) Location() string { return c.o.Place.String() }

// Close closes idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Create implements backend.Backend.
func (c *Client) Create(ctx context.Context, key string, data []byte) error {
	if err := backend.CheckKey(key); err != nil {
		return err
	}
	if len(data) > MaxObject {
		return fmt.Errorf("object %s of %d B, at most %d B: %w", key, len(data), MaxObject, block.ErrInvalid)
	}
	unanswered := false
	put := request{method: http.MethodPut, path: ObjectPath(c.o.Name, key), body: data, header: http.Header{"If-None-Match": {"*"}, "Content-Type": {"application/octet-stream"}}}
	err := c.tries.Do(ctx, "store object "+key, func() error {
		err := c.once(ctx, put, nil)
		var said *answer
		if err != nil && (!errors.As(err, &said) || temporary(err)) {
			unanswered = true // it may be there
		}
		return err
	})
	if errors.Is(err, block.ErrExists) && unanswered && c.same(ctx, key, data) {
		return nil // it was this one's earlier try
	}
	return err
}

// same reports whether an object holds data.
func (c *Client) same(ctx context.Context, key string, data []byte) bool {
	sum := sha256.Sum256(data)
	o, err := c.stat(ctx, key, "?hash="+HashSHA256)
	return err == nil && o.SizeBytes == int64(len(data)) && o.SHA256 == hex.EncodeToString(sum[:])
}

// ReadAt implements backend.Backend.
func (c *Client) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if err := backend.CheckKey(key); err != nil {
		return err
	}
	if len(p) == 0 {
		_, err := c.Stat(ctx, key)
		return err
	}
	part := fmt.Sprintf("%d-%d", off, off+int64(len(p))-1)
	get := request{method: http.MethodGet, path: ObjectPath(c.o.Name, key), header: http.Header{"Range": {"bytes=" + part}}}
	return c.ask(ctx, fmt.Sprintf("read object %s at %d", key, off), get, func(r *http.Response) error {
		if at := r.Header.Get("Content-Range"); r.StatusCode != http.StatusPartialContent || !strings.HasPrefix(at, "bytes "+part+"/") || r.ContentLength != int64(len(p)) {
			return fmt.Errorf("bytes %s were asked for, and the host sends %.100q of %d B with status %d: %w", part, at, r.ContentLength, r.StatusCode, errAnswer)
		}
		_, err := io.ReadFull(r.Body, p)
		return err
	})
}

// Stat implements backend.Backend.
func (c *Client) Stat(ctx context.Context, key string) (backend.Object, error) {
	if err := backend.CheckKey(key); err != nil {
		return backend.Object{}, err
	}
	o, err := c.stat(ctx, key, "")
	return backend.Object{Key: key, SizeBytes: o.SizeBytes, Created: o.Created}, err
}

func (c *Client) stat(ctx context.Context, key, query string) (o Object, err error) {
	err = c.ask(ctx, "object "+key, request{method: http.MethodGet, path: StatPath(c.o.Name, key) + query}, func(r *http.Response) error {
		o = Object{}
		if err := decode(r, &o); err != nil {
			return err
		}
		if o.Key != key {
			return fmt.Errorf("object %s was asked for, and the host tells of %.200q: %w", key, o.Key, errAnswer)
		}
		return o.check()
	})
	return o, err
}

// check reports whether a host says all of an object that prunes and readers go by.
func (o *Object) check() error {
	if o.SizeBytes < 0 || o.Created.Unix() <= 0 {
		return fmt.Errorf("object %s has a length of %d B and is of %v, says the host: %w", o.Key, o.SizeBytes, o.Created, errAnswer)
	}
	return nil
}

// List implements backend.Backend. Objects come in the order of the parts of their keys.
func (c *Client) List(ctx context.Context, prefix string, visit func(backend.Object) error) error {
	for after := ""; ; {
		var page Page
		err := c.ask(ctx, "list "+c.Location(), request{method: http.MethodGet, path: ListPath(c.o.Name, prefix, after)}, func(r *http.Response) error {
			page = Page{}
			if err := decode(r, &page); err != nil {
				return err
			}
			return page.check(prefix, after)
		})
		if err != nil {
			return err
		}
		for i := range page.Objects {
			o := &page.Objects[i]
			if err := visit(backend.Object{Key: o.Key, SizeBytes: o.SizeBytes, Created: o.Created}); err != nil {
				return err
			}
			after = o.Key
		}
		if !page.More {
			return nil
		}
	}
}

// check reports whether a page is one of what was asked for, so that a list comes to its end.
func (p *Page) check(prefix, after string) error {
	for i := range p.Objects {
		o := &p.Objects[i]
		if backend.CheckKey(o.Key) != nil || !strings.HasPrefix(o.Key, prefix) || after != "" && !Before(after, o.Key) {
			return fmt.Errorf("objects %q after %q were asked for, and the host lists %.200q: %w", prefix, after, o.Key, errAnswer)
		}
		if err := o.check(); err != nil {
			return err
		}
		after = o.Key
	}
	if p.More && len(p.Objects) == 0 {
		return fmt.Errorf("the host lists nothing, and more of it: %w", errAnswer)
	}
	return nil
}

// Delete implements backend.Backend. block.ErrInUse if the host keeps the object for some time yet.
func (c *Client) Delete(ctx context.Context, key string) error {
	if err := backend.CheckKey(key); err != nil {
		return err
	}
	unanswered := false
	err := c.tries.Do(ctx, "delete object "+key, func() error {
		err := c.once(ctx, request{method: http.MethodDelete, path: ObjectPath(c.o.Name, key)}, nil)
		if err != nil && temporary(err) {
			unanswered = true
		}
		return err
	})
	if unanswered && errors.Is(err, block.ErrNotFound) {
		return nil // an earlier try has deleted it
	}
	return err
}

// Keep implements backend.Keeper.
func (c *Client) Keep(ctx context.Context) (time.Duration, error) {
	about, err := c.about(ctx)
	if !(about.KeepSeconds >= 0 && about.KeepSeconds <= maxKeep.Seconds()) {
		return 0, errors.Join(err, fmt.Errorf("the host keeps objects for %v s: %w", about.KeepSeconds, errAnswer))
	}
	return time.Duration(about.KeepSeconds * float64(time.Second)), err
}

// about asks the host about the repository.
func (c *Client) about(ctx context.Context) (about About, err error) {
	err = c.ask(ctx, "ask about "+c.Location(), request{method: http.MethodGet, path: RepositoryPath(c.o.Name)}, func(r *http.Response) error {
		about = About{}
		return decode(r, &about)
	})
	return about, err
}

// Quota implements backend.Quoter.
func (c *Client) Quota(ctx context.Context) (backend.Quota, error) {
	about, err := c.about(ctx)
	return backend.Quota{UsedBytes: about.UsedBytes, LimitBytes: about.QuotaBytes, Peer: about.Peer, PeerUsedBytes: about.PeerUsedBytes, PeerLimitBytes: about.PeerQuotaBytes}, err
}

// maxKeep bounds what a client believes: a century.
const maxKeep = 100 * 366 * 24 * time.Hour

// decode reads a JSON document of a host.
func decode(r *http.Response, into any) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer+1))
	if err != nil {
		return err
	}
	if len(text) > maxAnswer {
		return fmt.Errorf("an answer of more than %d B: %w", maxAnswer, errAnswer)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%v: %w", err, errAnswer)
	}
	return nil
}

// maxAnswer bounds a JSON document of a host, bytes: a full page has at most 300 B for each object.
const maxAnswer = 1 << 20

// request is what a host is asked, any number of times.
type request struct {
	method, path string
	header       http.Header
	body         []byte
}

// ask asks until there is an answer, and has take read what is no error.
func (c *Client) ask(ctx context.Context, what string, q request, take func(*http.Response) error) error {
	return c.tries.Do(ctx, what, func() error { return c.once(ctx, q, take) })
}

// once asks once. A body is sent after the host has said that it wants it.
func (c *Client) once(ctx context.Context, q request, take func(*http.Response) error) error {
	r, err := http.NewRequestWithContext(ctx, q.method, c.base+q.path, bytes.NewReader(q.body))
	if err != nil {
		return fmt.Errorf("%w: %w", block.ErrInvalid, err)
	}
	for name, values := range q.header {
		r.Header[name] = values
	}
	if len(q.body) > expectBytes {
		r.Header.Set("Expect", "100-continue")
	}
	got, err := c.http.Do(r)
	if err != nil {
		return plain(err)
	}
	defer got.Body.Close()
	if got.StatusCode/100 != 2 {
		return readAnswer(got)
	}
	if take == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(got.Body, maxMessage)) // so that the connection is good for the next request
		return nil
	}
	return take(got)
}
