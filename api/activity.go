package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control"
)

// activityView is blockstore.Activity in JSON.
type activityView struct {
	Start          time.Time `json:"start"`
	BeforeSeq      uint64    `json:"beforeSeq"`
	Writes         uint64    `json:"writes"`
	Bytes          uint64    `json:"bytes"`
	OverwriteBytes uint64    `json:"overwriteBytes"`
	TrimmedBytes   uint64    `json:"trimmedBytes"`
	Samples        uint64    `json:"samples"`
	RandomSamples  uint64    `json:"randomSamples"`
	RandomShare    float64   `json:"randomShare"` // of bytes, estimated
	Entropy        float64   `json:"entropy"`     // bits a byte
}

// activity serves GET /v1/volumes/{name}/history/activity?stretchSeconds=…: what was written to a volume in its history, a JSON array. One is told at a time, as it reads the history.
func activity(c *control.Control) http.HandlerFunc {
	slots := make(places, 1)
	return func(w http.ResponseWriter, r *http.Request) {
		if err := allow(r.Context(), control.ScopeRead); err != nil {
			fail(w, err)
			return
		}
		seconds, err := strconv.ParseUint(r.URL.Query().Get("stretchSeconds"), 10, 31)
		if err != nil {
			fail(w, fmt.Errorf("stretchSeconds=%q: want a number of seconds: %w", r.URL.Query().Get("stretchSeconds"), block.ErrInvalid))
			return
		}
		leave, err := slots.take("another history is being looked at")
		if err != nil {
			fail(w, err)
			return
		}
		defer leave()
		all, err := c.HistoryActivity(r.Context(), r.PathValue("name"), time.Duration(seconds)*time.Second)
		if err != nil {
			fail(w, err)
			return
		}
		views := make([]activityView, 0, len(all))
		for _, a := range all {
			views = append(views, activityView{a.Start, a.BeforeSeq, a.Writes, a.Bytes, a.Overwrites, a.Trimmed, a.Samples, a.Random, a.RandomShare, a.Entropy})
		}
		reply(w, http.StatusOK, views)
	}
}
