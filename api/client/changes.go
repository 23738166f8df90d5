package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
)

// Change is a range in which two states differ, in bytes.
type Change struct {
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
	Kind   string `json:"kind"` // what it holds in the second: data, zero or hole
}

// ChangesTotal sums up all ranges in which two states differ.
type ChangesTotal struct {
	Ranges    uint64 `json:"ranges"`
	Bytes     uint64 `json:"bytes"`
	DataBytes uint64 `json:"dataBytes"`
	ZeroBytes uint64 `json:"zeroBytes"`
	HoleBytes uint64 `json:"holeBytes"`
}

// Changes calls tell with each range in which to differs from from, in order, until tell fails. Each is VOLUME@SNAPSHOT, or VOLUME for what it is now. An answer that was cut off is io.ErrUnexpectedEOF.
func (c *Client) Changes(ctx context.Context, from, to string, tell func(Change) error) (*ChangesTotal, error) {
	body, err := c.get(ctx, "/v1/changes?"+url.Values{"from": {from}, "to": {to}}.Encode())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	lines := bufio.NewScanner(body) // of at most 64 KiB
	for lines.Scan() {
		var line struct {
			Change
			Total *ChangesTotal `json:"total"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("read the answer of hvd: %w", err)
		}
		if line.Total != nil {
			return line.Total, nil
		}
		if err := tell(line.Change); err != nil {
			return nil, err
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the answer of hvd: %w", err)
	}
	return nil, fmt.Errorf("read the answer of hvd: %w", io.ErrUnexpectedEOF)
}
