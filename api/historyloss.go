package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control"
)

// historyLossView is blockstore.HistoryLoss in JSON.
type historyLossView struct {
	Volume        string     `json:"volume"`
	Ends          bool       `json:"ends"`  // all of it would go
	First         *time.Time `json:"first"` // the oldest moment that there is; null: none
	Until         *time.Time `json:"until"` // with which history would begin; that of first: no moment goes
	OverBudget    bool       `json:"overBudget"`
	Bytes         int64      `json:"bytes"`
	Points        uint64     `json:"points"`
	Labelled      uint64     `json:"labelled"`
	WholeFrom     *time.Time `json:"wholeFrom"` // every write from then on would be left, before it points; null: nothing is thinned that is not now
	ThinnedPoints uint64     `json:"thinnedPoints"`
}

// historyLoss serves GET /v1/volumes/{name}/history/loss?windowSeconds=…&budgetBytes=…&everySeconds=…&flushesSeconds=…&minutesSeconds=…: what setVolumeHistory with these values, which are 0 where they are not given, would give up. It changes nothing. One is told at
// a time, as it reads the history.
func historyLoss(c *control.Control) http.HandlerFunc {
	slots := make(places, 1)
	return func(w http.ResponseWriter, r *http.Request) {
		if err := allow(r.Context(), control.ScopeRead); err != nil {
			fail(w, err)
			return
		}
		var window, every, flushes, minutes float64
		var budget uint64
		for name, to := range map[string]*float64{"windowSeconds": &window, "everySeconds": &every, "flushesSeconds": &flushes, "minutesSeconds": &minutes} {
			text := r.URL.Query().Get(name)
			if text == "" {
				continue
			}
			var err error
			if *to, err = strconv.ParseFloat(text, 64); err != nil {
				fail(w, fmt.Errorf("%s=%.40q: want a number of seconds: %w", name, text, block.ErrInvalid))
				return
			}
		}
		if text := r.URL.Query().Get("budgetBytes"); text != "" {
			var err error
			if budget, err = strconv.ParseUint(text, 10, 63); err != nil {
				fail(w, fmt.Errorf("budgetBytes=%.40q: want a number of bytes: %w", text, block.ErrInvalid))
				return
			}
		}
		p, err := historyPolicy(window, budget, every, flushes, minutes)
		if err != nil {
			fail(w, err)
			return
		}
		leave, err := slots.take("another history is being looked at")
		if err != nil {
			fail(w, err)
			return
		}
		defer leave()
		l, err := c.HistoryLoss(r.Context(), r.PathValue("name"), p)
		if err != nil {
			fail(w, err)
			return
		}
		v := historyLossView{Volume: r.PathValue("name"), Ends: p.None() && l.FirstSeq > 0, OverBudget: l.OverBudget, Bytes: l.Bytes, Points: l.Points, Labelled: l.Labelled, ThinnedPoints: l.Thinned}
		if l.FirstSeq > 0 {
			v.First, v.Until = &l.First, &l.Until
		}
		if !l.Whole.IsZero() {
			v.WholeFrom = &l.Whole
		}
		reply(w, http.StatusOK, v)
	}
}
