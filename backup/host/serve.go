package host

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/dir"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/remote"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

// call is a request under way.
type call struct {
	h          *Host
	w          http.ResponseWriter
	r          *http.Request
	connection *http.ResponseController

	peer    string // the first name of the client
	account string // the one that its bytes count for
	name    string // of the repository
	key     string // of the object, if it is about one
	rights  access.Rights
	in      *dir.Dir // the repository, if it is there
}

// ServeHTTP implements http.Handler, for clients whose certificates were verified.
func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Host) routes() {
	h.mux = http.NewServeMux()
	add := func(pattern string, needs bool, do func(*call) error) {
		h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			c := &call{h: h, w: w, r: r, connection: http.NewResponseController(w), name: r.PathValue("name"), key: r.PathValue("key")}
			if err := c.serve(needs, strings.Contains(pattern, "{key"), do); err != nil {
				c.fail(err)
			}
		})
	}
	add("PUT /v1/repositories/{name}", false, (*call).make)
	add("GET /v1/repositories/{name}", true, (*call).about)
	add("GET /v1/repositories/{name}/objects", true, (*call).list)
	add("PUT /v1/repositories/{name}/objects/{key...}", true, (*call).put)
	add("GET /v1/repositories/{name}/objects/{key...}", true, (*call).get)
	add("DELETE /v1/repositories/{name}/objects/{key...}", true, (*call).delete)
	add("GET /v1/repositories/{name}/stat/{key...}", true, (*call).stat)
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c := &call{h: h, w: w, r: r, connection: http.NewResponseController(w)}
		c.fail(refuse(http.StatusNotFound, "no such request: %.100q", r.Method+" "+r.URL.Path))
	})
}

// serve finds out who asks for what. needs: the repository must be there. ofObject: there must be a key.
func (c *call) serve(needs, ofObject bool, do func(*call) error) (err error) {
	c.patience()
	names, err := mutualtls.Names(c.r.TLS)
	if err != nil {
		return refuse(http.StatusUnauthorized, "%v", err)
	}
	c.peer, c.account = names[0], c.h.o.PeerQuotas.Account(names)
	if err := access.CheckName(c.name); err != nil {
		return err
	}
	if ofObject {
		if err := backend.CheckKey(c.key); err != nil {
			return err
		}
	}
	if c.rights = c.h.o.Rules.Of(names, c.name); c.rights == 0 {
		return refuse(http.StatusForbidden, "a certificate of %q has no rights to repository %s (its repository.peers)", names, c.name)
	}
	if !c.h.enter(c.r.Context(), c.peer) {
		return refuse(http.StatusTooManyRequests, "too many requests at once")
	}
	defer c.h.leave(c.peer)
	if needs {
		key := c.key
		c.key = "" // an error is about the repository
		if c.in, err = c.h.repository(c.name); err != nil {
			return err
		}
		c.key = key
	}
	return do(c)
}

// forbid is the error of what the rights of a client do not allow.
func (c *call) forbid(format string, args ...any) error {
	return refuse(http.StatusForbidden, "%s in repository %s is not for %s, which has the right %q there", fmt.Sprintf(format, args...), c.name, c.peer, c.rights)
}

// make makes a repository.
func (c *call) make() error {
	if !c.rights.Has(access.Append) {
		return c.forbid("to make objects")
	}
	if err := c.h.create(c.name); err != nil {
		return err
	}
	if c.h.o.Events.Made != nil {
		c.h.o.Events.Made(c.peer, c.name)
	}
	c.reply(http.StatusCreated, c.aboutIt())
	return nil
}

func (c *call) about() error {
	about := c.aboutIt()
	bounded, err := c.h.bounded(c.name, c.account)
	if err == nil {
		err = c.h.count(c.r.Context(), bounded, time.Time{})
	}
	if err != nil {
		return err
	}
	c.h.ledger.mu.Lock()
	if u := c.h.ledger.mu.used[c.name]; u != nil && about.QuotaBytes > 0 {
		about.UsedBytes = u.bytes
	}
	if about.PeerQuotaBytes > 0 {
		about.Peer, about.PeerUsedBytes = c.account, c.h.ledger.ofPeerLocked(c.account)
	}
	c.h.ledger.mu.Unlock()
	c.reply(http.StatusOK, about)
	return nil
}

func (c *call) aboutIt() remote.About {
	return remote.About{
		Rights: c.rights.String(), KeepSeconds: c.h.o.Keep.Seconds(), QuotaBytes: c.h.o.Quotas.Of(c.name), PeerQuotaBytes: c.h.o.PeerQuotas.Of(c.account),
	}
}
