package membership

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kind says what the directories of a group hold. The values are part of the disk format.
type Kind uint32

const (
	// Log is the journal.
	Log Kind = 1
	// Segments is a tier of several directories.
	Segments Kind = 2
)

// These constants are part of the disk format (docs/format/members.md) and must not be changed.
const (
	// FileName is the name of a label in its directory.
	FileName = "members"

	labelSize    = 4096
	labelMagic   = "HNMEMBER"
	labelVersion = 1
	labelFixed   = 80
	memberSize   = 32

	// MaxMembers bounds the directories of a group.
	MaxMembers = 32
)

// Label is what a directory says of its group.
type Label struct {
	Kind       Kind
	StoreID    block.UUID
	Self       block.UUID // of the directory, random
	Generation uint64
	// Since is the lowest generation that the own label of a member may have: those below it are of another time.
	Since   uint64
	Members []Member // empty in a directory that has never been one
}

// Member is a directory of a group.
type Member struct {
	ID block.UUID
	In bool // in sync; else the others have gone on without it, and nobody has taken its place
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append appends the encoding of the label.
func (l *Label) Append(dst []byte) []byte {
	b := make([]byte, labelSize)
	le := binary.LittleEndian
	copy(b, labelMagic)
	le.PutUint32(b[8:], labelVersion)
	le.PutUint32(b[12:], uint32(l.Kind))
	copy(b[16:], l.StoreID[:])
	copy(b[32:], l.Self[:])
	le.PutUint64(b[48:], l.Generation)
	le.PutUint64(b[56:], l.Since)
	le.PutUint32(b[64:], uint32(len(l.Members)))
	for i, m := range l.Members {
		copy(b[labelFixed+i*memberSize:], m.ID[:])
		if m.In {
			b[labelFixed+i*memberSize+16] = 1
		}
	}
	le.PutUint32(b[labelSize-4:], crc32.Checksum(b[:labelSize-4], castagnoli))
	return append(dst, b...)
}

// Parse decodes a label with every bound checked. The error wraps block.ErrCorrupt or block.ErrVersion.
func Parse(b []byte) (l Label, err error) {
	bad := func(off int64, want string) (Label, error) {
		return Label{}, &block.CorruptError{Source: "label of a directory", Offset: off, Want: want, Got: "other bytes"}
	}
	if len(b) != labelSize {
		return bad(0, "4096 B")
	}
	if string(b[:8]) != labelMagic {
		return bad(0, "magic "+labelMagic)
	}
	le := binary.LittleEndian
	if crc32.Checksum(b[:labelSize-4], castagnoli) != le.Uint32(b[labelSize-4:]) {
		return bad(labelSize-4, "a crc that fits")
	}
	if v := le.Uint32(b[8:]); v != labelVersion {
		return Label{}, fmt.Errorf("label of a directory, version %d: %w", v, block.ErrVersion)
	}
	l = Label{Kind: Kind(le.Uint32(b[12:])), Generation: le.Uint64(b[48:]), Since: le.Uint64(b[56:])}
	copy(l.StoreID[:], b[16:])
	copy(l.Self[:], b[32:])
	n := le.Uint32(b[64:])
	if n > MaxMembers || l.Kind != Log && l.Kind != Segments || l.Since > l.Generation || l.Self == (block.UUID{}) {
		return bad(12, "values in bounds")
	}
	end := labelFixed + int(n)*memberSize
	if !zero(b[68:labelFixed]) || !zero(b[end:labelSize-4]) {
		return bad(68, "zeroes in reserved bytes")
	}
	for at := labelFixed; at < end; at += memberSize {
		m := Member{In: b[at+16] == 1}
		copy(m.ID[:], b[at:])
		if b[at+16] > 1 || !zero(b[at+17:at+memberSize]) || m.ID == (block.UUID{}) {
			return bad(int64(at), "a member")
		}
		for _, other := range l.Members {
			if other.ID == m.ID {
				return bad(int64(at), "a member that was not named before")
			}
		}
		l.Members = append(l.Members, m)
	}
	return l, nil
}

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
