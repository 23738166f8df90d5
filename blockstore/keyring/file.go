package keyring

import (
	"bytes"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// Bounds of a file of keys. They are part of the format.
const (
	// MaxFile bounds the file, in bytes.
	MaxFile = 8 << 20
	// MaxSlots bounds its slots.
	MaxSlots = 32

	maxLabel  = 200
	version   = 1
	titleLine = "hyper-nixos keys %d %08x\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Slot is the ring, wrapped for one recipient.
type Slot struct {
	Recipient string    `json:"recipient"` // age1… or age1pq1…
	Label     string    `json:"label,omitempty"`
	Added     time.Time `json:"added"`
	Sealed    []byte    `json:"sealed"`
}

// File is the file `keys` of a store. Its slots say in plain who may open it. MAC authenticates that list: a rotation wraps the new key for whoever is in it, so nobody without the ring may have put himself there.
type File struct {
	Store string `json:"store"`
	Slots []Slot `json:"slots"`
	MAC   []byte `json:"mac"`
}

// NewFile returns the file of a new store's keys, without a slot.
func NewFile(r *Ring) *File { return &File{Store: r.Store.String()} }

// Add adds a slot for a recipient, which must not have one.
func (f *File) Add(r *Ring, recipient, label string, now time.Time) error {
	to, err := secret.ParseRecipient(recipient)
	switch {
	case err != nil:
		return err
	case f.find(recipient) >= 0:
		return fmt.Errorf("%s has a slot: %w", recipient, block.ErrExists)
	case len(f.Slots) >= MaxSlots:
		return fmt.Errorf("the store has %d keys, at most %d: %w", len(f.Slots), MaxSlots, block.ErrInvalid)
	case len(label) > maxLabel:
		return fmt.Errorf("label of %d B, at most %d B: %w", len(label), maxLabel, block.ErrInvalid)
	}
	s := Slot{Recipient: recipient, Label: label, Added: now.UTC().Truncate(time.Second)}
	if err := s.wrap(r, to); err != nil {
		return err
	}
	f.Slots = append(f.Slots, s)
	return nil
}

// Remove takes the slot of a recipient away, unless it is the last.
func (f *File) Remove(recipient string) error {
	i := f.find(recipient)
	if i < 0 {
		return fmt.Errorf("%.80q has no slot: %w", recipient, block.ErrNotFound)
	}
	if len(f.Slots) == 1 {
		return fmt.Errorf("%s has the only slot; without it nobody can open the store: %w", recipient, block.ErrInvalid)
	}
	f.Slots = append(f.Slots[:i:i], f.Slots[i+1:]...)
	return nil
}

// Rewrap wraps the ring, which has changed, for all recipients.
func (f *File) Rewrap(r *Ring) error {
	for i := range f.Slots {
		to, err := secret.ParseRecipient(f.Slots[i].Recipient)
		if err != nil {
			return err
		}
		if err := f.Slots[i].wrap(r, to); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) find(recipient string) int {
	for i := range f.Slots {
		if f.Slots[i].Recipient == recipient {
			return i
		}
	}
	return -1
}

func (s *Slot) wrap(r *Ring, to age.Recipient) error {
	plain, err := r.encode()
	if err != nil {
		return err
	}
	defer clear(plain)
	s.Sealed, err = secret.Wrap(plain, to)
	return err
}

// Encode authenticates the slots with the ring that they hold and returns the file's bytes.
func (f *File) Encode(r *Ring) ([]byte, error) {
	f.MAC = r.signSlots(f.Slots)
	body, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(fmt.Appendf(nil, titleLine, version, crc32.Checksum(body, castagnoli)), body...), nil
}

// Decode reads a file, which may come from anybody. A newer format is block.ErrVersion, damage block.ErrCorrupt.
func Decode(b []byte) (*File, error) {
	corrupt := func(want, got string) (*File, error) {
		return nil, &block.CorruptError{Source: "keys", Want: want, Got: got}
	}
	if len(b) > MaxFile {
		return corrupt(fmt.Sprintf("at most %d B", MaxFile), fmt.Sprint(len(b)))
	}
	title, body, ok := bytes.Cut(b, []byte("\n"))
	var v, sum uint32
	if n, err := fmt.Sscanf(string(title)+"\n", titleLine, &v, &sum); !ok || n != 2 || err != nil {
		return corrupt("a title line", "other bytes")
	}
	if v != version {
		return nil, fmt.Errorf("keys of format %d, this program reads %d: %w", v, version, block.ErrVersion)
	}
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return corrupt(fmt.Sprintf("crc %08x", sum), fmt.Sprintf("%08x", got))
	}
	f := new(File)
	if err := json.Unmarshal(body, f); err != nil {
		return corrupt("JSON", err.Error())
	}
	if len(f.Slots) < 1 || len(f.Slots) > MaxSlots {
		return corrupt("1 to 32 slots", fmt.Sprint(len(f.Slots)))
	}
	for i := range f.Slots {
		if s := &f.Slots[i]; len(s.Label) > maxLabel || f.find(s.Recipient) != i {
			return corrupt("slots of different recipients with short labels", fmt.Sprint("slot ", i))
		}
	}
	return f, nil
}

// Open returns the ring of a store: ErrNoKey without identities, ErrWrongKey if they open no slot, block.ErrCorrupt if the slots are damaged or another store's, or were changed by somebody without a ring.
func (f *File) Open(store block.UUID, identities []age.Identity) (*Ring, error) {
	if f.Store != store.String() {
		return nil, &block.CorruptError{Source: "keys", Want: "those of store " + store.String(), Got: fmt.Sprintf("those of %.40q", f.Store)}
	}
	if len(identities) == 0 {
		return nil, ErrNoKey
	}
	for i := range f.Slots {
		plain, err := secret.Unwrap(f.Slots[i].Sealed, maxRing, identities...)
		if errors.Is(err, secret.ErrWrongKey) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("slot of %s: %w", f.Slots[i].Recipient, err)
		}
		defer clear(plain)
		r, err := decodeRing(plain, store)
		if err == nil && !hmac.Equal(f.MAC, r.signSlots(f.Slots)) {
			return nil, &block.CorruptError{Source: "keys", Want: "slots as who had a key of the store left them; restore the file from a copy", Got: "others"}
		}
		return r, err
	}
	return nil, ErrWrongKey
}
