package tiers

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Mender is a Backend that keeps a parity sidecar beside a segment and can replace both. A sidecar's key is ParityKey of its segment's. Open and Delete take such keys, too; Delete of
// a segment leaves its sidecar alone.
type Mender interface {
	Backend
	// Replace begins a file that takes the place of what the key names, or makes it, at Commit. Until then nobody sees it, and a crash leaves what was there.
	Replace(key string) (Replacement, error)
	// ListBeside calls visit with the key of each sidecar, and removes what replacements that a crash cut short have left. No replacement may be under way.
	ListBeside(visit func(parityKey string) error) error
}

// Replacement is a file on its way. It belongs to one goroutine, and ends with Commit or Discard.
type Replacement interface {
	io.ReaderAt
	io.WriterAt
	// Commit makes the file durable, gives it its name in one step and makes that durable. After an error either file may have the name; both are whole.
	Commit() error
	// Discard removes the file. After Commit it does nothing.
	Discard() error
}

const (
	segmentSuffix = ".seg"
	paritySuffix  = ".par"
)

// ParityKey returns the key of the sidecar of a segment.
func ParityKey(segmentKey string) string {
	return strings.TrimSuffix(segmentKey, segmentSuffix) + paritySuffix
}

// ParseParityKey is the inverse of ParityKey; ok is false for any other string.
func ParseParityKey(key string) (segmentKey string, ok bool) {
	name, ok := strings.CutSuffix(key, paritySuffix)
	if !ok {
		return "", false
	}
	_, _, ok = ParseSegmentKey(name + segmentSuffix)
	return name + segmentSuffix, ok
}

// mender returns a tier's backend if it is one.
func (s *Set) mender(tier string) (Mender, error) {
	b, err := s.Backend(tier)
	if err != nil {
		return nil, err
	}
	m, ok := b.(Mender)
	if !ok {
		return nil, fmt.Errorf("parity in tier %q: %w", tier, errors.ErrUnsupported)
	}
	return m, nil
}

// OpenCopy opens the copy p of a segment without looking whether it is the right one: who repairs it wants what there is. The caller closes it.
func (s *Set) OpenCopy(p Placement) (Reader, error) { return s.openKey(p.Tier, p.Key) }

// OpenParity opens the sidecar of the copy p. One that is not there is block.ErrNotFound. The caller closes it.
func (s *Set) OpenParity(p Placement) (Reader, error) { return s.openKey(p.Tier, ParityKey(p.Key)) }

func (s *Set) openKey(tier, key string) (Reader, error) {
	m, err := s.mender(tier)
	if err != nil {
		return nil, err
	}
	return m.Open(key)
}

// ReplaceParity begins a sidecar of the copy p.
func (s *Set) ReplaceParity(p Placement) (Replacement, error) {
	m, err := s.mender(p.Tier)
	if err != nil {
		return nil, err
	}
	return m.Replace(ParityKey(p.Key))
}

// ReplaceCopy begins a file with the same bytes that the copy p should have. Reads that begin after its Commit see it.
func (s *Set) ReplaceCopy(p Placement) (Replacement, error) {
	m, err := s.mender(p.Tier)
	if err != nil {
		return nil, err
	}
	r, err := m.Replace(p.Key)
	if err != nil {
		return nil, err
	}
	return &copyReplacement{r, s, handleKey{p.Tier, p.Key}}, nil
}

// copyReplacement makes readers open the new file.
type copyReplacement struct {
	Replacement
	s   *Set
	key handleKey
}

// Commit implements Replacement.
func (r *copyReplacement) Commit() error {
	err := r.Replacement.Commit()
	r.s.handles.forget(r.key)
	return err
}

// DeleteParity removes the sidecar of the copy p. One that is not there is no error.
func (s *Set) DeleteParity(p Placement) error {
	b, err := s.Backend(p.Tier)
	if err != nil {
		return err
	}
	if _, ok := b.(Mender); !ok {
		return nil
	}
	if err := b.Delete(ParityKey(p.Key)); err != nil && !errors.Is(err, block.ErrNotFound) {
		return fmt.Errorf("delete parity of segment %s from tier %q: %w", p.Key, p.Tier, err)
	}
	return nil
}

// ListParity calls visit with each sidecar of a tier, as the placement of its segment, and removes what a crash has left of replacements.
func (s *Set) ListParity(tier string, visit func(p Placement) error) error {
	m, err := s.mender(tier)
	if err != nil {
		return err
	}
	return m.ListBeside(func(key string) error {
		segment, ok := ParseParityKey(key)
		_, generation, _ := ParseSegmentKey(segment)
		if !ok {
			return nil
		}
		return visit(Placement{Tier: tier, Key: segment, Generation: generation, State: Live})
	})
}
