package api

import (
	"bufio"
	"encoding/json"
	"net/http"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control"
)

// maxDiffs is how many lists of changes are told at once.
const maxDiffs = 8

// changeLine is one line of GET /v1/changes: a range that differs, or, as the last line, the sum of all.
type changeLine struct {
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
	Kind   string `json:"kind"` // data, zero or hole
}

type changesEnd struct {
	Total changesTotal `json:"total"`
}

type changesTotal struct {
	Ranges    uint64 `json:"ranges"`
	Bytes     uint64 `json:"bytes"`
	DataBytes uint64 `json:"dataBytes"`
	ZeroBytes uint64 `json:"zeroBytes"`
	HoleBytes uint64 `json:"holeBytes"`
}

// changes serves GET /v1/changes?from=VOLUME@SNAPSHOT&to=VOLUME[@SNAPSHOT]: a JSON object a line for each range in which the two differ, and at the end their sum. A reply without that is not whole.
func changes(c *control.Control) http.HandlerFunc {
	slots := make(places, maxDiffs)
	return func(w http.ResponseWriter, r *http.Request) {
		if err := allow(r.Context(), control.ScopeRead); err != nil {
			fail(w, err)
			return
		}
		leave, err := slots.take("other lists of changes are being told")
		if err != nil {
			fail(w, err)
			return
		}
		defer leave()
		body := &lateBody{w: timely{w}, contentType: "application/x-ndjson"}
		body.finish(tellChanges(c, r, body))
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // the connection may have a next request
	}
}

// patience is how long a client may take to read a piece of a list. Who stops reading must not keep the states, which cannot be deleted meanwhile.
const patience = time.Minute

// timely gives up on a client that does not read.
type timely struct{ http.ResponseWriter }

// Write implements http.ResponseWriter.
func (t timely) Write(p []byte) (int, error) {
	if err := http.NewResponseController(t.ResponseWriter).SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return t.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (t timely) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func tellChanges(c *control.Control, r *http.Request, body *lateBody) error {
	out := bufio.NewWriterSize(body, 32<<10)
	encoder := json.NewEncoder(out)
	query := r.URL.Query()
	sum, err := c.Diff(r.Context(), query.Get("from"), query.Get("to"), func(change blockstore.Change) error {
		return encoder.Encode(changeLine{change.Off, change.Len, change.Kind.String()})
	})
	if err != nil {
		return err
	}
	if err := encoder.Encode(changesEnd{changesTotal{sum.Ranges, sum.TotalBytes(), sum.DataBytes, sum.ZeroBytes, sum.HoleBytes}}); err != nil {
		return err
	}
	return out.Flush()
}
