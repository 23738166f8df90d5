package repository

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// Salvage returns a chunk that is whole in a damaged pack, or in one that no run lists and a prune has marked. The bytes are valid until the next call. false: there is none.
func (m *Mending) Salvage(ctx context.Context, id block.Hash) (chunk []byte, ok bool, err error) {
	at, ok := m.salvage[id]
	if !ok {
		return nil, false, nil
	}
	if key := (frameKey{at.pack, at.frame}); m.lastRaw == nil || m.lastKey != key {
		if m.lastRaw, err = m.openFrame(ctx, &m.broken[at.pack], at.frame); err != nil {
			m.lastRaw = nil
			if ctx.Err() == nil && (errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrNotFound)) {
				return nil, false, nil // it has got worse meanwhile
			}
			return nil, false, err
		}
		m.lastKey = key
	}
	if uint64(at.off)+uint64(at.raw) > uint64(len(m.lastRaw)) {
		return nil, false, nil
	}
	chunk = m.lastRaw[at.off : at.off+at.raw]
	if pack.Verify(dedup.NewHasher(m.r.keys.Domain), id, chunk) != nil {
		return nil, false, nil
	}
	return chunk, true, nil
}

// openFrame reads one frame of a broken pack.
func (m *Mending) openFrame(ctx context.Context, p *brokenPack, number uint32) ([]byte, error) {
	f := &p.frames[number]
	sealed := make([]byte, f.Len)
	if err := m.r.backend.ReadAt(ctx, packKey(p.name), sealed, int64(f.Off)); err != nil {
		return nil, err
	}
	return openOrCorrect(p.reader, f, int(number), sealed)
}

// CorrectManifest returns a manifest that cannot be read, if all that is wrong are some bits of one byte of it; false if it is not. Its name is what its object is called.
func (r *Repository) CorrectManifest(ctx context.Context, name string) (*Manifest, bool) {
	b, err := r.read(ctx, manifestPrefix+name, maxManifest)
	if err != nil || len(b) < manifestHeader {
		return nil, false
	}
	m, err := r.decodeManifest(b)
	end := min(len(b), manifestHeader+int(binary.LittleEndian.Uint16(b[10:])))
	if err != nil {
		if secret, keyErr := r.keys.OpenSession(b[manifestHeader:end]); keyErr == nil {
			box := secret.Box(seal.PurposeManifest, seal.Salt(b[28:60]), r.keys.Repository)
			if sealed, ok := box.Correct(b[end:], 0, 1); ok {
				b = append(b[:end:end], sealed...)
				m, err = r.decodeManifest(b)
			}
		}
	}
	for bit := 0; err != nil && bit < 8*end && ctx.Err() == nil; bit++ { // a bit of the header, which a sum tells
		b[bit/8] ^= 1 << (bit % 8)
		if h := manifestHeader + int(binary.LittleEndian.Uint16(b[10:])); h <= len(b) && manifestSum(b[:h]) == binary.LittleEndian.Uint32(b[60:]) {
			m, err = r.decodeManifest(b)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	if err != nil {
		return nil, false
	}
	m.Name = name
	return m, true
}

// Replace stores a chunk although the index may know it: for one whose other places are damaged.
func (w *Writer) Replace(id block.Hash, raw []byte) error {
	if len(raw) == 0 || len(raw) > pack.MaxChunk {
		return fmt.Errorf("chunk of %d B: %w", len(raw), block.ErrInvalid)
	}
	return w.copy(id, raw)
}

// CommitAgain stores the manifest of a backup whose own object is damaged or gone, by another name: whoever knew the backup, or has a copy of it, knows it by its identity still. Else as Commit.
func (w *Writer) CommitAgain(ctx context.Context, m *Manifest) error {
	if m.Frozen != nil && !w.r.vouchedFrozen(m) {
		m.Frozen = nil
	}
	if !w.r.vouchedLock(m) {
		m.PacksLockedUntil, m.LockProof = time.Time{}, nil
	}
	if !w.r.genuine(m) {
		if err := w.r.SetOrigin(m, w.r.Identity(m)); err != nil {
			return err
		}
	}
	return w.Commit(ctx, m)
}

// Finish makes good what is damaged of the index, and has damaged packs go, once all that could be had of them is durable in others: packs that no run lists are listed, then runs go that cannot be
// read, then damaged packs are marked, so that no backup relies on them and a prune deletes them a grace later. A missing pack that held one of so many lost chunks is not: if it comes back,
// all is well. Whatever stops it, what backups need is where it was; the next repair goes on.
func (m *Mending) Finish(ctx context.Context, lost int, isLost func(id block.Hash) bool) error {
	if err := m.fresh(); err != nil {
		return err
	}
	for rest := m.found; len(rest) > 0; {
		n := min(len(rest), packsPerMerged)
		if _, err := m.r.storeRun(ctx, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	for _, key := range m.DamagedRuns {
		if _, err := m.r.readRun(ctx, key); err == nil || !m.r.damagedObject(ctx, key, err) { // it was damaged on the way here, or has gone
			continue
		}
		if err := m.fresh(); err != nil {
			return err
		}
		if err := ignoreRefused(m.r.backend.Delete(ctx, key)); err != nil {
			return err
		}
	}
	names, err := m.toMark(ctx, lost, isLost)
	if err != nil || len(names) == 0 {
		return err
	}
	return m.r.storeMark(ctx, names)
}

// fresh returns an error when what was read of marks is too old to list packs by.
func (m *Mending) fresh() error {
	if elapsed(m.began) < freshness {
		return nil
	}
	return fmt.Errorf("the repair has taken longer than %v, so what it knows of the index is too old; what it has mended is stored: run it again for the rest", freshness)
}

// toMark returns the damaged packs that nobody shall rely on any more.
func (m *Mending) toMark(ctx context.Context, lost int, isLost func(id block.Hash) bool) (names []block.Hash, err error) {
	hoped := make(map[string]bool) // missing ones that would bring back what is lost
	missing := make(map[string]bool)
	for i := range m.Damaged {
		missing[m.Damaged[i].Name] = m.Damaged[i].Problem == PackMissing
	}
	if lost > 0 {
		err = m.eachRun(ctx, nil, func(packs []runPack) {
			for i := range packs {
				if name := packs[i].name.String(); missing[name] && holdsAny(packs[i].frames, isLost) {
					hoped[name] = true
				}
			}
		})
	}
	if err != nil {
		return nil, err
	}
	for i := range m.Damaged {
		d := &m.Damaged[i]
		if d.Marked || d.Problem == PackUnreadable || hoped[d.Name] {
			continue
		}
		id, err := hex.DecodeString(d.Name)
		if err != nil {
			return nil, err
		}
		names = append(names, block.Hash(id))
	}
	return names, nil
}

func holdsAny(frames []pack.Frame, isLost func(id block.Hash) bool) bool {
	for i := range frames {
		for _, c := range frames[i].Chunks {
			if isLost(c.ID) {
				return true
			}
		}
	}
	return false
}
