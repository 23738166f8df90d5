package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Replication is how a copy of a volume in another hvd is, or a volume that is such a copy, or a group of either (control.Replication).
type Replication struct {
	Volume          string     `json:"volume"` // or @GROUP
	Group           string     `json:"group,omitempty"`
	Role            string     `json:"role"`
	State           string     `json:"state"`
	Pair            string     `json:"pair"`
	Epoch           uint64     `json:"epoch"`
	FencedBy        uint64     `json:"fencedBy,omitempty"`
	Target          string     `json:"target,omitempty"`
	Peer            string     `json:"peer,omitempty"`
	IntervalSeconds float64    `json:"intervalSeconds,omitempty"`
	PointAt         *time.Time `json:"pointAt"`
	RPOSeconds      *float64   `json:"rpoSeconds"`
	BehindBytes     *uint64    `json:"behindBytes"`
	TotalBytes      uint64     `json:"totalBytes"`
	DoneBytes       uint64     `json:"doneBytes"`
	RateBytes       float64    `json:"rateBytes"`
	Cycles          uint64     `json:"cycles"`
	Failures        uint64     `json:"failures"`
	DataBytes       uint64     `json:"dataBytes"`
	WireBytes       uint64     `json:"wireBytes"`
	LimitBytes      uint64     `json:"limitBytes"`
	Error           string     `json:"error,omitempty"`

	Members []Replication `json:"members,omitempty"`
}

// Demotion is what became of a demotion, or would.
type Demotion struct {
	Volume    string   `json:"volume"`         // or @GROUP
	LostBytes uint64   `json:"lostBytes"`      // what differs from the newest point that the other side may have
	Left      []string `json:"left,omitempty"` // volumes of a group of which the other side has nothing: they stay what they are
	DryRun    bool     `json:"dryRun"`
}

// Replications lists all replications ordered by volume.
func (c *Client) Replications(ctx context.Context) (all []Replication, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/replications", nil, &all)
	return all, err
}

// Replication describes the replication of a volume, or of @GROUP, as everything here takes either.
func (c *Client) Replication(ctx context.Context, volume string) (r Replication, err error) {
	err = c.call(ctx, http.MethodGet, replicationPath(volume, ""), nil, &r)
	return r, err
}

// Replicate begins to keep a copy of a volume in another hvd. interval 0 is hvd's default; limit is in bytes a second, 0 for none, nil for what it is.
func (c *Client) Replicate(ctx context.Context, volume, target string, interval time.Duration, limit *uint64) (r Replication, err error) {
	in := map[string]any{"target": target, "intervalSeconds": interval.Seconds()}
	if limit != nil {
		in["limitBytes"] = *limit
	}
	err = c.call(ctx, http.MethodPut, replicationPath(volume, ""), in, &r)
	return r, err
}

// LimitReplication changes how many bytes a second a source may send, at once; 0 is no limit.
func (c *Client) LimitReplication(ctx context.Context, volume string, bytes uint64) (r Replication, err error) {
	err = c.call(ctx, http.MethodPut, replicationPath(volume, "/limit"), map[string]any{"limitBytes": bytes}, &r)
	return r, err
}

// StopReplication ends the replication of a source.
func (c *Client) StopReplication(ctx context.Context, volume string) error {
	return c.call(ctx, http.MethodDelete, replicationPath(volume, ""), nil, &struct{}{})
}

// SyncReplication returns when the target has a point that is newer than this call.
func (c *Client) SyncReplication(ctx context.Context, volume string) (r Replication, err error) {
	err = c.call(ctx, http.MethodPost, replicationPath(volume, "/sync"), nil, &r)
	return r, err
}

// PromoteReplica makes an ordinary volume of a replica.
func (c *Client) PromoteReplica(ctx context.Context, volume string) (r Replication, err error) {
	err = c.call(ctx, http.MethodPost, replicationPath(volume, "/promote"), nil, &r)
	return r, err
}

// DemoteReplica makes a replica of a source or of a volume that was promoted.
func (c *Client) DemoteReplica(ctx context.Context, volume string, dryRun bool) (d Demotion, err error) {
	err = c.call(ctx, http.MethodPost, replicationPath(volume, "/demote?dryRun="+strconv.FormatBool(dryRun)), nil, &d)
	return d, err
}

func replicationPath(volume, rest string) string {
	return "/v1/replications/" + url.PathEscape(volume) + rest
}

// call sends a small JSON document, if there is one, and reads the one that comes back.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, &body)
	if err != nil {
		return err
	}
	answer, err := c.do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return problem(answer.StatusCode, answer.Body)
	}
	if err := json.NewDecoder(answer.Body).Decode(out); err != nil {
		return fmt.Errorf("read the answer of hvd: %w", err)
	}
	return nil
}
