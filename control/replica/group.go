package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Bounds of groups.
const (
	MaxMembers      = 256       // volumes of a group
	MaxGroupMessage = 512 << 10 // bytes of a message in JSON about a group
)

// GroupHello is what the source of a group says first: POST /v1/replicagroups/NAME.
type GroupHello struct {
	Group   string        `json:"group"` // 26 of a-z and 2-7, random: the group, whatever it is called
	Members []MemberHello `json:"members"`
}

// MemberHello is the hello of one volume of a group.
type MemberHello struct {
	Volume string `json:"volume"` // name at the other side
	Hello
}

// GroupState is the answer: how the volumes are there, in the order of the hello.
type GroupState struct {
	Members []State `json:"members"`
}

// Commit has the point of a group become complete, for all members at once: POST /v1/replicagroups/NAME/points/POINT.
type Commit struct {
	Group   string         `json:"group"`
	At      time.Time      `json:"at"`      // of the point, by the clock of the source
	Members []CommitMember `json:"members"` // all that the group has from now on
}

// CommitMember is a volume whose part of the point is there.
type CommitMember struct {
	Volume string `json:"volume"`
	Pair   string `json:"pair"`
	Epoch  uint64 `json:"epoch"`
}

// CheckMembers accepts how many members a group has. The error wraps block.ErrInvalid.
func CheckMembers(n int) error {
	if n < 1 || n > MaxMembers {
		return fmt.Errorf("a group of %d volumes: want 1 to %d: %w", n, MaxMembers, block.ErrInvalid)
	}
	return nil
}

// HelloGroup asks how the volumes of a group are there. The answer has one state for each.
func (c *Client) HelloGroup(ctx context.Context, h GroupHello) (s GroupState, err error) {
	err = c.askGroup(ctx, helloTime, "", h, &s)
	if err == nil && len(s.Members) != len(h.Members) {
		err = fmt.Errorf("%s answers for %d volumes of a group of %d: %w", c.target, len(s.Members), len(h.Members), block.ErrInvalid)
	}
	return s, err
}

// Commit has a point of a group become complete, and returns when it is, durably.
func (c *Client) Commit(ctx context.Context, point string, m Commit) error {
	return c.askGroup(ctx, answerTime, "/points/"+url.PathEscape(point), m, &struct{}{})
}

// askGroup sends a message about the group of the target, and reads the answer.
func (c *Client) askGroup(ctx context.Context, within time.Duration, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	text, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := c.do(ctx, http.MethodPost, "/v1/replicagroups/"+url.PathEscape(c.target.Group)+path, "application/json", bytes.NewReader(text))
	if said := new(PeerError); errors.As(err, &said) && said.Code == "" && said.Status == http.StatusNotFound {
		return fmt.Errorf("%s knows no groups of replicas, its hvd is too old: %w", c.target, err)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.target, err)
	}
	return nil
}
