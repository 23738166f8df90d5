package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format (docs/format/history.md) and must not be changed.
const (
	historyMagic   = "HNHISTST"
	historyVersion = 1
	// historyThins is the version of a state with a volume whose history is thinned: a program that does not know it must not open it.
	historyThins = 2
	historyHead  = 64
	historyEntry = 64
	// maxHistories bounds the volumes that have history at once.
	maxHistories = 4096
)

// historyState is what outlives the process of who has history and how far it goes.
type historyState struct {
	StoreID  block.UUID
	NextFile uint32 // first file of the log with records that are not copied; 0: none is waited for
	Seq      uint64 // every record up to it is copied, where it is a volume's that has history
	Volumes  []historyPolicyRow
}

// historyPolicyRow is the history of one volume.
type historyPolicyRow struct {
	ID      block.VolumeID
	Policy  HistoryPolicy
	Since   uint64 // nothing up to that sequence number can be had
	LastSeq uint64 // durable in its files
}

// version is that of the format: the oldest that can say what is there.
func (s *historyState) version() uint32 {
	for _, v := range s.Volumes {
		if v.Policy.Every > 0 {
			return historyThins
		}
	}
	return historyVersion
}

func (s *historyState) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, historyHead+historyEntry*len(s.Volumes)+4)
	copy(b, historyMagic)
	le.PutUint32(b[8:], s.version())
	le.PutUint32(b[12:], uint32(len(s.Volumes)))
	copy(b[16:], s.StoreID[:])
	le.PutUint32(b[32:], s.NextFile)
	le.PutUint64(b[40:], s.Seq)
	for i, v := range s.Volumes {
		e := b[historyHead+i*historyEntry:]
		le.PutUint64(e, uint64(v.ID))
		le.PutUint64(e[8:], uint64(v.Policy.Window))
		le.PutUint64(e[16:], v.Policy.BudgetBytes)
		le.PutUint64(e[24:], v.Since)
		le.PutUint64(e[32:], v.LastSeq)
		le.PutUint64(e[40:], uint64(v.Policy.Every))
		le.PutUint64(e[48:], uint64(v.Policy.Flushes))
		le.PutUint64(e[56:], uint64(v.Policy.Minutes))
	}
	le.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
	return b
}

func decodeHistoryState(b []byte, source string) (s historyState, err error) {
	le := binary.LittleEndian
	bad := func(at int, want, got string) (historyState, error) {
		return historyState{}, &block.CorruptError{Source: source, Offset: int64(at), Want: want, Got: got}
	}
	if len(b) < historyHead+4 || string(b[:8]) != historyMagic {
		return bad(0, "the state of history", fmt.Sprintf("%d B", len(b)))
	}
	if sum := crc32.Checksum(b[:len(b)-4], castagnoli); sum != le.Uint32(b[len(b)-4:]) {
		return bad(len(b)-4, fmt.Sprintf("crc %08x", sum), fmt.Sprintf("%08x", le.Uint32(b[len(b)-4:])))
	}
	version := le.Uint32(b[8:])
	if version != historyVersion && version != historyThins {
		return s, fmt.Errorf("%s has format version %d, this program reads up to version %d: %w", source, version, historyThins, block.ErrVersion)
	}
	n := le.Uint32(b[12:])
	if n > maxHistories || len(b) != historyHead+historyEntry*int(n)+4 || le.Uint32(b[36:]) != 0 || le.Uint64(b[48:])|le.Uint64(b[56:]) != 0 {
		return bad(12, "a length that fits the number of volumes, and zeroes in reserved bytes", fmt.Sprintf("%d volumes, %d B", n, len(b)))
	}
	s = historyState{StoreID: block.UUID(b[16:32]), NextFile: le.Uint32(b[32:]), Seq: le.Uint64(b[40:])}
	for i := range int(n) {
		at := historyHead + i*historyEntry
		e := b[at:]
		v := historyPolicyRow{ID: block.VolumeID(le.Uint64(e)), Since: le.Uint64(e[24:]), LastSeq: le.Uint64(e[32:])}
		v.Policy = HistoryPolicy{Window: time.Duration(le.Uint64(e[8:])), BudgetBytes: le.Uint64(e[16:]), Every: time.Duration(le.Uint64(e[40:])), Flushes: time.Duration(le.Uint64(e[48:])), Minutes: time.Duration(le.Uint64(e[56:]))}
		if v.ID == 0 || v.Policy.None() || v.Policy.Validate() != nil || version == historyVersion && v.Policy.Every != 0 {
			return bad(at, "a volume with a policy of its history", fmt.Sprintf("volume %d, %+v", v.ID, v.Policy))
		}
		s.Volumes = append(s.Volumes, v)
	}
	return s, nil
}

func (h *historian) statePath() string { return h.s.fs.PathJoin(h.s.path(historyDir), "state") }

// readState returns the state of an earlier run, or an empty one.
func (h *historian) readState() (historyState, error) {
	path := h.statePath()
	b, err := readSmallFile(h.s.fs, path, historyHead+historyEntry*maxHistories+4)
	if errors.Is(err, os.ErrNotExist) {
		return historyState{}, nil
	}
	if err != nil {
		return historyState{}, err
	}
	st, err := decodeHistoryState(b, path)
	if err == nil && st.StoreID != h.s.super.StoreID {
		err = &block.CorruptError{Source: path, Offset: 16, Want: "store " + h.s.super.StoreID.String(), Got: st.StoreID.String()}
	}
	return st, err
}

// save makes the state durable. h.work is held.
func (h *historian) save() error {
	h.mu.Lock()
	st := historyState{StoreID: h.s.super.StoreID, NextFile: h.mu.nextFile, Seq: h.mu.seq}
	for _, v := range h.mu.volumes {
		st.Volumes = append(st.Volumes, historyPolicyRow{ID: v.id, Policy: v.policy, Since: v.since, LastSeq: v.lastSeq})
	}
	h.mu.Unlock()
	if err := writeFileAtomic(h.s.fs, h.s.path(historyDir), h.statePath(), st.encode()); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.saved = st.NextFile
	for _, row := range st.Volumes {
		if v := h.mu.volumes[row.ID]; v != nil {
			v.noted = row.Since
		}
	}
	return nil
}
