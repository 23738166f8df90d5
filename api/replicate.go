package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

const (
	maxReplicaStreams = 16              // at once; each holds at most 3 MiB of buffers
	replicaStall      = 2 * time.Minute // that a source may take to send a piece
)

// replicateRequest is what PUT /v1/replications/{name} wants.
type replicateRequest struct {
	Target          string  `json:"target"`
	IntervalSeconds float64 `json:"intervalSeconds"`      // 0: the default
	LimitBytes      *uint64 `json:"limitBytes,omitempty"` // a second; 0: none; absent: as it is
}

// limitRequest is what PUT /v1/replications/{name}/limit wants.
type limitRequest struct {
	LimitBytes *uint64 `json:"limitBytes"` // a second; 0: none
}

// addReplications adds what users do with replications. A name is that of a volume, or @GROUP.
func addReplications(mux *http.ServeMux, c *control.Control) {
	slots := make(places, maxDiffs) // what a target does not have is a list of changes that is counted
	mux.HandleFunc("GET /v1/replications", limited(slots, scoped(control.ScopeRead, func(r *http.Request) (any, error) {
		return c.Replications(r.Context()), nil
	})))
	mux.HandleFunc("GET /v1/replications/{name}", limited(slots, scoped(control.ScopeRead, func(r *http.Request) (any, error) {
		return c.Replication(r.Context(), r.PathValue("name"))
	})))
	mux.HandleFunc("PUT /v1/replications/{name}", scoped(control.ScopeAdmin, func(r *http.Request) (any, error) {
		var in replicateRequest
		if err := readMessage(r, &in); err != nil {
			return nil, err
		}
		if !(in.IntervalSeconds >= 0 && in.IntervalSeconds <= control.MaxReplicaInterval.Seconds()) {
			return nil, fmt.Errorf("interval of %v seconds: want at most %v: %w", in.IntervalSeconds, control.MaxReplicaInterval.Seconds(), block.ErrInvalid)
		}
		spec := control.ReplicateSpec{Target: in.Target, Interval: time.Duration(in.IntervalSeconds * float64(time.Second)), LimitBytes: in.LimitBytes}
		if err := c.Replicate(r.Context(), r.PathValue("name"), spec); err != nil {
			return nil, err
		}
		return c.Replication(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("PUT /v1/replications/{name}/limit", scoped(control.ScopeOperate, func(r *http.Request) (any, error) {
		var in limitRequest
		if err := readMessage(r, &in); err != nil {
			return nil, err
		}
		if in.LimitBytes == nil {
			return nil, fmt.Errorf("limitBytes: want bytes a second, or 0 for no limit: %w", block.ErrInvalid)
		}
		if err := c.LimitReplication(r.Context(), r.PathValue("name"), *in.LimitBytes); err != nil {
			return nil, err
		}
		return c.Replication(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("DELETE /v1/replications/{name}", scoped(control.ScopeAdmin, func(r *http.Request) (any, error) {
		return struct{}{}, c.StopReplication(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("POST /v1/replications/{name}/sync", scoped(control.ScopeOperate, func(r *http.Request) (any, error) {
		if err := c.SyncReplication(r.Context(), r.PathValue("name")); err != nil {
			return nil, err
		}
		return c.Replication(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("POST /v1/replications/{name}/promote", scoped(control.ScopeAdmin, func(r *http.Request) (any, error) {
		if err := c.PromoteReplica(r.Context(), r.PathValue("name")); err != nil {
			return nil, err
		}
		return c.Replication(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("POST /v1/replications/{name}/demote", scoped(control.ScopeAdmin, func(r *http.Request) (any, error) {
		dryRun, err := strconv.ParseBool(r.URL.Query().Get("dryRun"))
		if err != nil {
			return nil, fmt.Errorf("dryRun=%.40q: want true or false: %w", r.URL.Query().Get("dryRun"), block.ErrInvalid)
		}
		d, err := c.DemoteReplica(r.Context(), r.PathValue("name"), dryRun)
		return map[string]any{"volume": r.PathValue("name"), "lostBytes": d.LostBytes, "left": d.Left, "dryRun": dryRun}, err
	}))
}

// limited refuses requests when as many are being answered as there are slots.
func limited(slots places, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		leave, err := slots.take("other requests like this are being answered")
		if err != nil {
			fail(w, err)
			return
		}
		defer leave()
		next(w, r)
	}
}

// scoped answers with what do returns, for callers of that scope.
func scoped(needs control.Scope, do func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer, err := any(nil), allow(r.Context(), needs)
		if err == nil {
			answer, err = do(r)
		}
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, answer)
	}
}

// readMessage reads a small JSON document.
func readMessage(r *http.Request, into any) error { return readBounded(r, into, replica.MaxMessage) }

// readBounded reads a JSON document of so many bytes at most.
func readBounded(r *http.Request, into any, most int) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, int64(most)+1))
	if err != nil {
		return err
	}
	if len(text) > most {
		return fmt.Errorf("a message of more than %d bytes: %w", most, block.ErrInvalid)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("message: %v: %w", err, block.ErrInvalid)
	}
	return nil
}

// replicas serves what other hvd ask for.
type replicas struct {
	control *control.Control
	slots   places
}

// addReplicas adds it, for callers that sender knows.
func addReplicas(mux *http.ServeMux, c *control.Control, sender func(*http.Request) (control.ReplicaSender, error)) {
	s := &replicas{c, make(places, maxReplicaStreams)}
	mux.HandleFunc("POST /v1/replicas/{name}", func(w http.ResponseWriter, r *http.Request) {
		who, err := sender(r)
		if err == nil {
			var h replica.Hello
			if err = readMessage(r, &h); err == nil {
				var state replica.State
				if state, err = c.ReplicaHello(r.Context(), who, r.PathValue("name"), h); err == nil {
					reply(w, http.StatusOK, state)
					return
				}
			}
		}
		fail(w, err)
	})
	addReplicaGroups(mux, c, sender)
	mux.HandleFunc("PUT /v1/replicas/{name}/points/{point}", func(w http.ResponseWriter, r *http.Request) {
		who, err := sender(r)
		if err != nil {
			fail(w, err)
			return
		}
		s.receive(w, r, who)
	})
}

// localSender is for the doors that know users: whoever may do everything may send replicas.
func localSender(r *http.Request) (control.ReplicaSender, error) {
	return control.ReplicaSender{Local: true}, allow(r.Context(), control.ScopeAdmin)
}

// certifiedSender is for the door of other hvd, which lets nobody in without a certificate.
func certifiedSender(r *http.Request) (control.ReplicaSender, error) {
	names, err := mutualtls.Names(r.TLS)
	switch {
	case errors.Is(err, mutualtls.ErrNoCertificate):
		return control.ReplicaSender{}, fmt.Errorf("%w: %w", err, errUnauthenticated)
	case err != nil:
		return control.ReplicaSender{}, fmt.Errorf("%w: %w", err, errForbidden)
	}
	return control.ReplicaSender{Names: names}, nil
}

// receive serves PUT /v1/replicas/{name}/points/{point}?…: a stream with what changed since another point.
func (s *replicas) receive(w http.ResponseWriter, r *http.Request, who control.ReplicaSender) {
	leave, err := s.slots.take("other replicas are being received")
	if err != nil {
		fail(w, err)
		return
	}
	defer leave()
	if got := r.Header.Get("Content-Type"); got != replica.ContentType {
		fail(w, fmt.Errorf("content type %.100q: want %s: %w", got, replica.ContentType, block.ErrInvalid))
		return
	}
	begin, err := replica.ParseBegin(r.PathValue("point"), r.URL.Query())
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Connection", "close") // a full-duplex request whose body was not read to its end must be the last one
	connection := http.NewResponseController(w)
	if err := connection.EnableFullDuplex(); err != nil { // an error must reach a source that is still sending
		fail(w, err)
		return
	}
	body := &impatientBody{body: r.Body, connection: connection}
	err = s.control.ReceiveReplica(r.Context(), who, r.PathValue("name"), begin, body, body.cut)
	if err == nil {
		reply(w, http.StatusOK, map[string]string{"point": begin.Point})
		return
	}
	fail(w, err)
	_ = connection.Flush()
	_ = connection.SetReadDeadline(time.Now().Add(drainTime))
	_, _ = io.Copy(io.Discard, r.Body)
}

// impatientBody gives up on a source that sends nothing.
type impatientBody struct {
	body       io.Reader
	connection *http.ResponseController

	mu    sync.Mutex // held while a deadline is set
	isCut bool
}

// Read implements io.Reader.
func (b *impatientBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	err := error(nil)
	if b.isCut {
		err = fmt.Errorf("another connection took its place, or the replica's role changes: %w", block.ErrClosed)
	} else {
		err = b.connection.SetReadDeadline(time.Now().Add(replicaStall))
	}
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return b.body.Read(p)
}

// cut makes reads fail, from now on.
func (b *impatientBody) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.isCut = true
	_ = b.connection.SetReadDeadline(time.Unix(1, 0))
}

// serveReplicas opens the door for other hvd, if the configuration wants one.
func (s *Server) serveReplicas(c *control.Control, log *slog.Logger) error {
	listener, err := c.ListenReplicas()
	if err != nil || listener == nil {
		return err
	}
	mux := http.NewServeMux()
	addReplicas(mux, c, certifiedSender)
	s.replicas = s.servePeers(listener, "replicas", mux, 0, log)
	return nil
}
