package replica

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// ContentType is that of a stream.
const ContentType = "application/vnd.hyper-nixos.replica"

// Bounds of messages.
const (
	MaxMessage = 64 << 10  // bytes of a message in JSON about a volume
	MaxEpoch   = 1<<53 - 1 // so that every JSON reader has it exactly
	idLength   = 26        // of pairs and points
	timeForm   = time.RFC3339Nano
)

// Empty is the point of a volume as it was made: all zeroes.
const Empty = "empty"

// Roles that one side tells the other.
const (
	RoleReplica = "replica" // receives
	RolePrimary = "primary" // has its own writers
)

// Hello is what a source says first: POST /v1/replicas/NAME.
type Hello struct {
	Pair      string `json:"pair"`   // 26 of a-z and 2-7, random: what belongs together knows it
	Epoch     uint64 `json:"epoch"`  // from 1 on; the greater one is right
	Source    string `json:"source"` // name of the volume there, for people
	SizeBytes uint64 `json:"sizeBytes"`
	Chunking  string `json:"chunking"`
	Mode      string `json:"mode"`
	Create    bool   `json:"create"` // no point of it was ever complete: it may be made
}

// State is the answer: how the volume of that pair is there.
type State struct {
	Pair      string     `json:"pair"`
	Epoch     uint64     `json:"epoch"`
	Role      string     `json:"role"`
	Points    []string   `json:"points"` // that are complete and kept, oldest first
	Receiving *Receiving `json:"receiving,omitempty"`
}

// Receiving is a point of which a part has come.
type Receiving struct {
	Point        string `json:"point"`
	Base         string `json:"base"`
	SizeBytes    uint64 `json:"sizeBytes"`
	ReachedBytes uint64 `json:"reachedBytes"`       // what changed before is there, durably
	Complete     bool   `json:"complete,omitempty"` // all of it is there, durably; the other members of its group are awaited
}

// Begin is what comes with a stream: PUT /v1/replicas/NAME/points/POINT?pair=…&epoch=…&base=…&from=…&at=…, with &group=… of a member of a group.
type Begin struct {
	Pair      string
	Epoch     uint64
	Point     string
	Base      string    // the point that the stream begins from
	FromBytes uint64    // what changed before was sent already; 0: begin anew
	At        time.Time // of the point, by the clock of the source
	Group     string    // that the point is one of; empty: of the volume alone
}

// CheckID accepts names of pairs and, with Empty, of points.
func CheckID(what, id string) error {
	ok := len(id) == idLength
	for _, r := range id {
		ok = ok && (r >= 'a' && r <= 'z' || r >= '2' && r <= '7')
	}
	if !ok {
		return fmt.Errorf("%s %.40q: want %d of a-z and 2-7: %w", what, id, idLength, block.ErrInvalid)
	}
	return nil
}

// CheckEpoch accepts epochs.
func CheckEpoch(epoch uint64) error {
	if epoch < 1 || epoch > MaxEpoch {
		return fmt.Errorf("epoch %d: want 1 to %d: %w", epoch, uint64(MaxEpoch), block.ErrInvalid)
	}
	return nil
}

// query is the part of Begin that is in the query of the request.
func (b Begin) query() url.Values {
	v := url.Values{
		"pair": {b.Pair}, "epoch": {strconv.FormatUint(b.Epoch, 10)}, "base": {b.Base},
		"from": {strconv.FormatUint(b.FromBytes, 10)}, "at": {b.At.UTC().Format(timeForm)},
	}
	if b.Group != "" {
		v.Set("group", b.Group)
	}
	return v
}

// ParseBegin reads it again, from anybody. The error wraps block.ErrInvalid.
func ParseBegin(point string, query url.Values) (b Begin, err error) {
	b = Begin{Pair: query.Get("pair"), Point: point, Base: query.Get("base"), Group: query.Get("group")}
	if err := CheckID("pair", b.Pair); err != nil {
		return b, err
	}
	if err := CheckID("point", b.Point); err != nil {
		return b, err
	}
	if b.Group != "" {
		if err := CheckID("group", b.Group); err != nil {
			return b, err
		}
	}
	if b.Base != Empty {
		if err := CheckID("base", b.Base); err != nil {
			return b, err
		}
	}
	if b.Epoch, err = strconv.ParseUint(query.Get("epoch"), 10, 64); err != nil {
		return b, fmt.Errorf("epoch=%.40q: want a number: %w", query.Get("epoch"), block.ErrInvalid)
	}
	if err := CheckEpoch(b.Epoch); err != nil {
		return b, err
	}
	if b.FromBytes, err = strconv.ParseUint(query.Get("from"), 10, 64); err != nil {
		return b, fmt.Errorf("from=%.40q: want a number of bytes: %w", query.Get("from"), block.ErrInvalid)
	}
	if b.At, err = time.Parse(timeForm, query.Get("at")); err != nil {
		return b, fmt.Errorf("at=%.40q: want a time as in RFC 3339: %w", query.Get("at"), block.ErrInvalid)
	}
	return b, nil
}
