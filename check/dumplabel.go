package check

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/members.md
const (
	labelSize = 4096
	labelMost = 32
)

// LabelDump is the label of a directory of a disk: which directories were up to date when it was written.
type LabelDump struct {
	File       string        `json:"file"`
	Error      string        `json:"error,omitempty"` // why it cannot be read; nothing below is set then
	Kind       string        `json:"kind"`            // "log" or "segments"
	Store      string        `json:"store"`
	ID         string        `json:"id"`         // of this directory
	Generation uint64        `json:"generation"` // of several labels the one with the highest counts
	Since      uint64        `json:"since"`      // a label of a lower generation is stale
	Members    []LabelMember `json:"members"`
}

// LabelMember is a directory that a label names.
type LabelMember struct {
	ID     string `json:"id"`
	InSync bool   `json:"inSync"` // if not, the others have gone on without it
}

// DumpLabel reads the label in a file. It needs neither the others nor a store. Which directories are in sync say all labels together.
func DumpLabel(path string) (*LabelDump, error) {
	b, err := readSmall(path, labelSize)
	if err != nil {
		return nil, fmt.Errorf("dump label %s: %w", path, err)
	}
	d := &LabelDump{File: path, Members: []LabelMember{}}
	if err := d.read(b); err != nil {
		d = &LabelDump{File: path, Members: []LabelMember{}, Error: err.Error()}
	}
	return d, nil
}

func (d *LabelDump) read(b []byte) error {
	f := &fields{b: b}
	f.magic("HNMEMBER")
	f.rule(len(b) == labelSize, 0, "4096 B", "%d B", len(b))
	if f.err == nil {
		f.err = checkSum(labelSize-4, crc(b[:labelSize-4]), binary.LittleEndian.Uint32(b[labelSize-4:]))
	}
	f.version(4)
	kind := f.u32()
	f.rule(kind == 1 || kind == 2, 12, "kind 1 or 2", "%d", kind)
	d.Kind = map[uint32]string{1: "log", 2: "segments"}[kind]
	d.Store = block.UUID(f.take(16)).String()
	id := f.take(16)
	d.ID = fmt.Sprintf("%x", id)
	f.rule(!allZero(id), 32, "an id", "none")
	d.Generation, d.Since = f.u64(), f.u64()
	f.rule(d.Since <= d.Generation, 56, fmt.Sprintf("a generation up to %d", d.Generation), "%d", d.Since)
	n := f.u32()
	f.rule(n <= labelMost, 64, "at most 32 members", "%d", n)
	f.reserved(12)
	seen := map[string]bool{}
	for i := 0; f.err == nil && i < int(n); i++ {
		at := f.at
		member := f.take(16)
		m := LabelMember{ID: fmt.Sprintf("%x", member)}
		state := f.u8()
		f.reserved(15)
		f.rule(state <= 1 && !seen[m.ID] && !allZero(member), at, "another member, in sync or not", "state %d of %s", state, m.ID)
		m.InSync, seen[m.ID] = state == 1, true
		d.Members = append(d.Members, m)
	}
	f.reserved(max(0, labelSize-4-f.at))
	f.take(4)
	return f.end()
}

// WriteText writes a line for the label and one for each member.
func (d *LabelDump) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "label %s: ", d.File)
	if d.Error != "" {
		fmt.Fprintf(&b, "%s\n", d.Error)
	} else {
		fmt.Fprintf(&b, "%s of store %s, directory %s, generation %d, members since %d\n", d.Kind, d.Store, d.ID, d.Generation, d.Since)
	}
	for _, m := range d.Members {
		state, own := "the others went on without it", ""
		if m.InSync {
			state = "in sync"
		}
		if m.ID == d.ID {
			own = ", this one"
		}
		fmt.Fprintf(&b, "  %s  %s%s\n", m.ID, state, own)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
