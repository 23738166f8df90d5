package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// Activity is what was written to a volume in one stretch of its history (blockstore.Activity).
type Activity struct {
	Start          time.Time `json:"start"`
	BeforeSeq      uint64    `json:"beforeSeq"`
	Writes         uint64    `json:"writes"`
	Bytes          uint64    `json:"bytes"`
	OverwriteBytes uint64    `json:"overwriteBytes"`
	TrimmedBytes   uint64    `json:"trimmedBytes"`
	Samples        uint64    `json:"samples"`
	RandomSamples  uint64    `json:"randomSamples"`
	RandomShare    float64   `json:"randomShare"`
	Entropy        float64   `json:"entropy"`
}

// HistoryActivity tells what was written to a volume in its history, in stretches of a length, oldest first; those without a change are left out.
func (c *Client) HistoryActivity(ctx context.Context, volume string, stretch time.Duration) (all []Activity, err error) {
	path := "/v1/volumes/" + url.PathEscape(volume) + "/history/activity?stretchSeconds=" + strconv.FormatInt(int64(stretch/time.Second), 10)
	body, err := c.get(ctx, path)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&all); err != nil {
		return nil, fmt.Errorf("read the answer of hvd: %w", err)
	}
	return all, nil
}
