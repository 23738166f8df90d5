package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/remote"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// refusal is an error whose text is for the client.
type refusal struct {
	status int
	text   string
}

// Error is what the client is told.
func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// codes are the errors of each status that is answered. They are part of the protocol.
var codes = map[int]string{
	http.StatusBadRequest:                   remote.CodeInvalid,
	http.StatusLengthRequired:               remote.CodeInvalid,
	http.StatusRequestEntityTooLarge:        remote.CodeInvalid,
	http.StatusPreconditionRequired:         remote.CodeInvalid,
	http.StatusUnauthorized:                 remote.CodeUnauthenticated,
	http.StatusForbidden:                    remote.CodeForbidden,
	http.StatusNotFound:                     remote.CodeNotFound,
	http.StatusRequestTimeout:               remote.CodeCutOff,
	http.StatusConflict:                     remote.CodeInUse,
	http.StatusPreconditionFailed:           remote.CodeExists,
	http.StatusRequestedRangeNotSatisfiable: remote.CodeOutOfRange,
	http.StatusTooManyRequests:              remote.CodeBusy,
	http.StatusInternalServerError:          remote.CodeInternal,
	http.StatusInsufficientStorage:          remote.CodeNoSpace,
}

// fail answers with an error. What this machine could not do is told to its operator, and not to the client: the text may name files.
func (c *call) fail(err error) {
	var said *refusal
	switch {
	case errors.As(err, &said):
	case errors.Is(err, errCut):
		said = &refusal{http.StatusRequestTimeout, "the body was cut off, or came too slowly"}
	case errors.Is(err, block.ErrNotFound) && c.key == "":
		said = &refusal{http.StatusNotFound, fmt.Sprintf("no repository %s", c.name)}
	case errors.Is(err, block.ErrNotFound):
		said = &refusal{http.StatusNotFound, fmt.Sprintf("no object %s in repository %s", c.key, c.name)}
	case errors.Is(err, block.ErrExists) && c.key == "":
		said = &refusal{http.StatusPreconditionFailed, fmt.Sprintf("repository %s is not empty", c.name)}
	case errors.Is(err, block.ErrExists):
		said = &refusal{http.StatusPreconditionFailed, fmt.Sprintf("object %s of repository %s", c.key, c.name)}
	case errors.Is(err, block.ErrNoSpace):
		said = &refusal{http.StatusInsufficientStorage, fmt.Sprintf("its file system has no room for object %s of repository %s", c.key, c.name)}
	case errors.Is(err, block.ErrInvalid):
		said = &refusal{http.StatusBadRequest, strings.TrimSuffix(err.Error(), ": "+block.ErrInvalid.Error())}
	default:
		said = &refusal{http.StatusInternalServerError, "it could not do that; its log says why"}
		c.failed(err)
	}
	switch said.status {
	case http.StatusForbidden, http.StatusConflict, http.StatusUnauthorized, http.StatusInsufficientStorage:
		c.count(func(s *Stats) { s.Refused++ })
		if c.h.o.Events.Refused != nil {
			c.h.o.Events.Refused(c.peer, c.name, said)
		}
	case http.StatusTooManyRequests:
		c.w.Header().Set("Retry-After", "1")
	}
	c.reply(said.status, remote.Fault{Errors: []remote.FaultError{{Message: said.text, Extensions: map[string]string{"code": codes[said.status]}}}})
}

// failed tells of what this machine could not do, unless the client has gone.
func (c *call) failed(err error) {
	if c.r.Context().Err() != nil {
		return
	}
	c.count(func(s *Stats) { s.Failed++ })
	if c.h.o.Events.Failed != nil {
		c.h.o.Events.Failed(c.name, err)
	}
}

// reply answers with JSON.
func (c *call) reply(status int, body any) {
	c.patience()
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Cache-Control", "no-store")
	c.w.WriteHeader(status)
	_ = json.NewEncoder(c.w).Encode(body) // the client has gone; net/http closes the connection
}
