package s3test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// Fault is what happens to a request.
type Fault struct {
	Method string // of the requests that it happens to; empty: all
	Times  int    // to how many of them
	Status int    // the answer; 0: see below
	Code   string // of S3, in the answer

	Hang       bool // there is none
	Lost       bool // the connection breaks in the middle of the request
	Unanswered bool // the request is carried out, and the connection breaks before the answer
}

// Proxy stands before a server.
type Proxy struct {
	Host string

	mu struct {
		sync.Mutex
		fault    Fault
		requests int
	}
}

// NewProxy starts a proxy that ends with the test.
func NewProxy(t *testing.T, g *Gateway) *Proxy {
	t.Helper()
	p := new(Proxy)
	target := &url.URL{Scheme: "http", Host: g.Host}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host }}
	ended := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := p.next(r.Method)
		if !ok {
			forward.ServeHTTP(w, r) // with the client's Host, which is signed
			return
		}
		f.happen(w, r, forward, ended)
	}))
	t.Cleanup(func() {
		close(ended)
		server.CloseClientConnections()
		server.Close()
	})
	p.Host = server.Listener.Addr().String()
	return p
}

// Fail makes the next requests fail.
func (p *Proxy) Fail(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.fault, p.mu.requests = f, 0
}

// Failed returns how many requests have failed since Fail.
func (p *Proxy) Failed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.requests
}

func (p *Proxy) next(method string) (Fault, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.mu.fault
	if p.mu.requests >= f.Times || f.Method != "" && f.Method != method {
		return f, false
	}
	p.mu.requests++
	return f, true
}

func (f *Fault) happen(w http.ResponseWriter, r *http.Request, forward http.Handler, ended <-chan struct{}) {
	switch {
	case f.Hang:
		select {
		case <-r.Context().Done():
		case <-ended:
		}
	case f.Lost:
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
		panic(http.ErrAbortHandler)
	case f.Unanswered:
		forward.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	default:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(f.Status)
		_, _ = io.WriteString(w, "<Error><Code>"+f.Code+"</Code><Message>on purpose</Message></Error>")
	}
}
