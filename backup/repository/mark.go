package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// MinGrace is how long a marked pack lasts at least. Writers count on it, so it is part of the repository format and should not be changed.
const MinGrace = 12 * time.Hour

// freshness is how long what was read of marks may be acted upon: what was not marked then lasts for as long again, which is for clocks that differ and listings that are old.
const freshness = MinGrace / 2

// ErrMarked means that a prune has marked packs that a writer relies on, so long ago that they may be deleted soon. What the writer stored is there and found by the next.
var ErrMarked = errors.New("a prune has marked for deletion what this relies on")

// These constants are part of the repository format and should not be changed.
const (
	markHeader   = 64
	markVersion  = 1
	maxMarkPacks = 1 << 20
	maxMark      = markHeader + seal.Overhead + 4 + 32*maxMarkPacks
)

var markMagic = [8]byte{'H', 'V', 'M', 'A', 'R', 'K', '1', 0}

// mark is an object that names packs that are to be deleted. From its time on nothing new relies on them.
type mark struct {
	key     string
	created time.Time    // by the clock of the backend
	packs   []block.Hash // none of one that cannot be read
}

// ErrUnreadableMark means that a mark cannot be read. It may name any pack, so nothing may be relied on, nor deleted.
var ErrUnreadableMark = errors.New("a mark of packs that are to be deleted cannot be read")

func encodeMark(keys *seal.Keys, packs []block.Hash) []byte {
	plain := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+32*len(packs)), uint32(len(packs)))
	for i := range packs {
		plain = append(plain, packs[i][:]...)
	}
	salt := seal.NewSalt()
	b := make([]byte, markHeader, markHeader+len(plain)+seal.Overhead)
	copy(b, markMagic[:])
	binary.LittleEndian.PutUint16(b[8:], markVersion)
	copy(b[12:28], keys.Repository[:])
	copy(b[28:60], salt[:])
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return keys.Index.Box(seal.PurposeMark, salt, keys.Repository).Seal(b, plain, 0)
}

func decodeMark(keys *seal.Keys, b []byte) ([]block.Hash, error) {
	corrupt := func(at int, want, got string) error {
		return &block.CorruptError{Source: "mark", Offset: int64(at), Want: want, Got: got}
	}
	if len(b) < markHeader || [8]byte(b[:8]) != markMagic {
		return nil, corrupt(0, "the magic of a mark", "other bytes")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != markVersion {
		return nil, fmt.Errorf("mark of version %d: %w", v, block.ErrVersion)
	}
	if sum := crc32.Checksum(b[:60], castagnoli); sum != binary.LittleEndian.Uint32(b[60:]) || b[10] != 0 || b[11] != 0 {
		return nil, corrupt(60, "the sum of the header", fmt.Sprintf("%08x", sum))
	}
	if repository := block.UUID(b[12:28]); repository != keys.Repository {
		return nil, corrupt(12, "repository "+keys.Repository.String(), repository.String())
	}
	plain, err := keys.Index.Box(seal.PurposeMark, seal.Salt(b[28:60]), keys.Repository).Open(nil, b[markHeader:], 0)
	if err != nil {
		return nil, err
	}
	if len(plain) < 4 || uint64(binary.LittleEndian.Uint32(plain))*32 != uint64(len(plain)-4) {
		return nil, corrupt(markHeader, "as many packs as it says", fmt.Sprintf("%d B", len(plain)))
	}
	packs := make([]block.Hash, (len(plain)-4)/32)
	for i := range packs {
		packs[i] = block.Hash(plain[4+32*i : 4+32*i+32])
	}
	return packs, nil
}

// storeMark stores marks that name packs, and returns when they are durable.
func (r *Repository) storeMark(ctx context.Context, packs []block.Hash) error {
	for len(packs) > 0 {
		n := min(len(packs), maxMarkPacks)
		b := encodeMark(r.keys, packs[:n])
		key := markPrefix + time.Now().UTC().Format("20060102t150405z") + "-" + nameOf(b)[:8]
		if err := r.backend.Create(ctx, key, b); err != nil {
			return err
		}
		packs = packs[n:]
	}
	return nil
}

// loadMarks reads all marks and notes in the index what they name, and whether one cannot be read, which is told to bad and in the way of writers and prunes. One that goes after it was
// listed may have been replaced by another, which that listing may have missed: then they are listed once more.
func (r *Repository) loadMarks(ctx context.Context, bad func(key string, err error)) (marks []mark, err error) {
	began := time.Now()
	var unreadable error
	note := func(key string, err error) {
		unreadable = fmt.Errorf("%w: %w", ErrUnreadableMark, err)
		if bad != nil {
			bad(key, err)
		}
	}
	seen := make(map[string]bool)
	for range maxListings {
		more, replaced, err := r.listMarks(ctx, seen, note)
		if err != nil {
			return nil, err
		}
		marks = append(marks, more...)
		if replaced {
			continue
		}
		if unreadable != nil && bad == nil {
			return nil, unreadable
		}
		r.index.mark(nil, began)
		r.index.setUnreadable(unreadable)
		for i := range marks {
			r.index.mark(marks[i].packs, began)
		}
		return marks, nil
	}
	return nil, fmt.Errorf("the marks of the repository in %s change all the time; try again later", r.backend.Location())
}

// listMarks reads the marks that were not seen yet. replaced: one of them went meanwhile.
func (r *Repository) listMarks(ctx context.Context, seen map[string]bool, bad func(key string, err error)) (marks []mark, replaced bool, err error) {
	err = r.backend.List(ctx, markPrefix, func(o backend.Object) error {
		if seen[o.Key] {
			return nil
		}
		m := mark{key: o.Key, created: o.Created}
		var err error
		if m.packs, err = r.readMark(ctx, o.Key); errors.Is(err, block.ErrCorrupt) {
			m.packs, err = r.readMark(ctx, o.Key) // it may have been the way here
		}
		if errors.Is(err, block.ErrNotFound) {
			replaced = true
			return nil
		}
		seen[o.Key] = true
		if errors.Is(err, block.ErrCorrupt) {
			err = tell(ctx, bad, o.Key, err)
		} else if err != nil {
			err = fmt.Errorf("%s: %w", o.Key, err)
		}
		marks = append(marks, m)
		return err
	})
	return marks, replaced, err
}

func (r *Repository) readMark(ctx context.Context, key string) ([]block.Hash, error) {
	b, err := r.read(ctx, key, maxMark)
	if err != nil {
		return nil, err
	}
	return decodeMark(r.keys, b)
}

// setUnreadable notes that a mark cannot be read, or with nil that all can.
func (x *Index) setUnreadable(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mu.unreadable = err
}

// unreadableMark returns why a mark cannot be read, nil if all can.
func (x *Index) unreadableMark() error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.mu.unreadable
}

// loaded returns when the listing of marks began that the index goes by; now if there was none, as then it knows nothing.
func (x *Index) loaded() time.Time {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.mu.asOf.IsZero() {
		return time.Now()
	}
	return x.mu.asOf
}

// elapsed is how long ago t was. The monotonic clock stands still while the machine sleeps, and the wall clock may be set: the longer one counts.
func elapsed(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// Commit stores the manifest of a backup and gives it its name, after Close. The backup exists when this returns, and all that it relies on stays. ErrMarked if a prune has marked
// some of that too long ago.
func (w *Writer) Commit(ctx context.Context, m *Manifest) error {
	if err := w.renew(ctx); err != nil {
		return err
	}
	if err := w.r.commit(ctx, m); err != nil {
		return err
	}
	if err := w.renew(ctx); err != nil { // storing the manifest took hours
		return errors.Join(err, w.r.Forget(context.WithoutCancel(ctx), m.Name))
	}
	return nil
}

// renew looks for new marks if what is known of them is old. What is neither marked nor gone then lasts for MinGrace from the beginning of that listing.
func (w *Writer) renew(ctx context.Context) error {
	if w.since(w.asOf) < freshness {
		return nil
	}
	began := time.Now()
	if _, err := w.r.loadMarks(ctx, nil); err != nil {
		return err
	}
	there := make(map[string]bool) // marks end some time after their packs
	err := w.r.backend.List(ctx, packPrefix, func(o backend.Object) error {
		there[packName(o.Key)] = true
		return nil
	})
	if err != nil {
		return err
	}
	w.pending.Lock()
	defer w.pending.Unlock()
	all := w.r.index.all()
	for number := range w.pending.relied {
		if p := &all[number]; p.marked || !there[p.name] {
			return fmt.Errorf("pack %s: %w", p.name, ErrMarked)
		}
	}
	w.asOf = began
	return nil
}

// packName is the name of the pack of an object, "" if it is none, or does not lie where that pack belongs.
func packName(key string) string {
	name := key[strings.LastIndex(key, "/")+1:]
	if len(name) < 2 || key != packKey(name) {
		return ""
	}
	return name
}
