package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// HistoryLoss is what a change would give up of a volume's history (blockstore.HistoryLoss). The names of its fields are part of the interface of commands that print it.
type HistoryLoss struct {
	Volume        string     `json:"volume"`
	DryRun        bool       `json:"dryRun"` // always true: nothing was changed
	Ends          bool       `json:"ends"`   // all of it would go
	First         *time.Time `json:"first"`  // the oldest moment that there is; null: none
	Until         *time.Time `json:"until"`  // what is older would go
	OverBudget    bool       `json:"overBudget"`
	Bytes         uint64     `json:"bytes"`    // that would go with it
	Points        uint64     `json:"points"`   // moments that have a name, among them
	Labelled      uint64     `json:"labelled"` // of these, marks and snapshots
	WholeFrom     *time.Time `json:"wholeFrom"`
	ThinnedPoints uint64     `json:"thinnedPoints"` // points of what is left that would be thinned
}

// HistoryLoss tells what SetVolumeHistory with these values would give up, and changes nothing.
func (c *Client) HistoryLoss(ctx context.Context, volume string, windowSeconds float64, budgetBytes uint64, everySeconds, flushesSeconds, minutesSeconds float64) (*HistoryLoss, error) {
	q := url.Values{"budgetBytes": {strconv.FormatUint(budgetBytes, 10)}}
	for name, seconds := range map[string]float64{"windowSeconds": windowSeconds, "everySeconds": everySeconds, "flushesSeconds": flushesSeconds, "minutesSeconds": minutesSeconds} {
		q.Set(name, strconv.FormatFloat(seconds, 'f', -1, 64))
	}
	body, err := c.get(ctx, "/v1/volumes/"+url.PathEscape(volume)+"/history/loss?"+q.Encode())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	l := &HistoryLoss{DryRun: true}
	if err := json.NewDecoder(body).Decode(l); err != nil {
		return nil, fmt.Errorf("read the answer of hvd: %w", err)
	}
	return l, nil
}

// Text says it in lines for people.
func (l *HistoryLoss) Text() (lines []string) {
	at := func(t *time.Time) string { return t.Local().Format(time.DateTime) }
	with := fmt.Sprintf("%s, %d points, %d of them marks or snapshots", units.Size(l.Bytes).Human(), l.Points, l.Labelled)
	switch {
	case l.First == nil || l.Until == nil:
	case l.Ends:
		lines = append(lines, fmt.Sprintf("all history of volume %s would go, of every moment from %s until now: %s", l.Volume, at(l.First), with))
	case l.Until.After(*l.First):
		why := ""
		if l.OverBudget {
			why = ", as it is over the budget"
		}
		lines = append(lines, fmt.Sprintf("history of volume %s from %s until %s would go%s: %s", l.Volume, at(l.First), at(l.Until), why, with))
	}
	if l.WholeFrom != nil {
		lines = append(lines, fmt.Sprintf("of what is older than %s only points would be left, %d fewer than there are now", at(l.WholeFrom), l.ThinnedPoints))
	}
	if len(lines) == 0 {
		lines = append(lines, fmt.Sprintf("nothing of the history of volume %s would go", l.Volume))
	}
	return lines
}
