package keyring

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// Errors of keys that were given, or not.
var (
	// ErrNoKey means that the store is encrypted and no key was given.
	ErrNoKey = errors.New("the store is encrypted, and no key was given")
	// ErrWrongKey means that none of the keys that were given opens the store.
	ErrWrongKey = errors.New("none of the keys given opens the store")
)

// Purposes of what is derived from a master key. They are part of the format.
const (
	purposeLog     = "hyper-nixos 2026 at rest: log"
	purposeSegment = "hyper-nixos 2026 at rest: segment"
	purposeSlots   = "hyper-nixos 2026 at rest: slots"
)

// maxMasters bounds the master keys of a ring, and so how often a store is rotated.
const maxMasters = 1024

// Ring is the keys of one store.
type Ring struct {
	Store  block.UUID
	Domain dedup.DomainKey

	masters []secret.Secret // of id i+1
}

// New makes the keys of a new store.
func New(store block.UUID) (*Ring, error) {
	domain, err := dedup.NewDomainKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Ring{Store: store, Domain: domain, masters: []secret.Secret{secret.New()}}, nil
}

// Current is the id of the key under which new data is sealed. The first is 1.
func (r *Ring) Current() uint32 { return uint32(len(r.masters)) }

// Rotate adds a master key. What was sealed before is read with those that were there before.
func (r *Ring) Rotate() error {
	if len(r.masters) >= maxMasters {
		return fmt.Errorf("the store has %d master keys, at most %d: %w", len(r.masters), maxMasters, block.ErrInvalid)
	}
	r.masters = append(r.masters, secret.New())
	return nil
}

// Log returns the key that the keys of log files are derived from; block.ErrNotFound for an id that the ring does not have.
func (r *Ring) Log(id uint32) (secret.Secret, error) { return r.derive(id, purposeLog) }

// Segment is the same of segments.
func (r *Ring) Segment(id uint32) (secret.Secret, error) { return r.derive(id, purposeSegment) }

func (r *Ring) derive(id uint32, purpose string) (secret.Secret, error) {
	if id == 0 || uint64(id) > uint64(len(r.masters)) {
		return secret.Secret{}, fmt.Errorf("master key %d, the store has 1 to %d: %w", id, len(r.masters), block.ErrNotFound)
	}
	return r.masters[id-1].Derive(r.Store[:], purpose), nil
}

// signSlots authenticates who has slots, under the newest master key: HMAC-SHA256 of the recipients, labels and times in order, each behind its length, a u32.
func (r *Ring) signSlots(slots []Slot) []byte {
	var text []byte
	for _, s := range slots {
		for _, part := range []string{s.Recipient, s.Label, s.Added.UTC().Format(time.RFC3339)} {
			text = append(binary.LittleEndian.AppendUint32(text, uint32(len(part))), part...)
		}
	}
	sum := r.masters[len(r.masters)-1].Derive(r.Store[:], purposeSlots).MAC(text)
	return sum[:]
}

// sealedRing is a ring as it is wrapped.
type sealedRing struct {
	Store   string   `json:"store"`
	Domain  []byte   `json:"domain"`
	Masters [][]byte `json:"masters"`
}

// maxRing bounds an encoded ring, in bytes.
const maxRing = 1024 + maxMasters*64

func (r *Ring) encode() ([]byte, error) {
	in := sealedRing{Store: r.Store.String(), Domain: r.Domain.Bytes()}
	for _, m := range r.masters {
		in.Masters = append(in.Masters, m.Bytes())
	}
	return json.Marshal(in)
}

// decodeRing reads what was wrapped for a store. It came from who had the keys, but may be of another store.
func decodeRing(b []byte, store block.UUID) (*Ring, error) {
	var in sealedRing
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, &block.CorruptError{Source: "wrapped keys", Want: "JSON", Got: "none"} // the error would show a part of the keys
	}
	if in.Store != store.String() {
		return nil, &block.CorruptError{Source: "wrapped keys", Want: "those of store " + store.String(), Got: fmt.Sprintf("those of %.40q", in.Store)}
	}
	if len(in.Masters) < 1 || len(in.Masters) > maxMasters {
		return nil, &block.CorruptError{Source: "wrapped keys", Want: "1 to 1024 master keys", Got: fmt.Sprint(len(in.Masters))}
	}
	r := &Ring{Store: store}
	var err error
	if r.Domain, err = dedup.DomainKeyFromBytes(in.Domain); err != nil {
		return nil, err
	}
	for _, m := range in.Masters {
		s, err := secret.FromBytes(m)
		if err != nil {
			return nil, err
		}
		r.masters = append(r.masters, s)
	}
	return r, nil
}
