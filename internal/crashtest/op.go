package crashtest

import (
	"context"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kind is what an operation does.
type Kind uint8

// The kinds of operations. Those before Flush change data of a volume.
const (
	Write Kind = iota
	Trim
	Zero
	Flush
	Create
	Delete
	Rename
	Resize
	Snapshot
	DeleteSnapshot
	Rollback
	Clone // of Snapshot, or of the volume as it is when that is empty
	RenameSnapshot
	Protect
	Unprotect
	SnapshotAll // of all volumes of the client at once
)

var kindNames = [...]string{"write", "trim", "zero", "flush", "create", "delete", "rename", "resize", "snapshot", "delete snapshot", "roll back", "clone", "rename snapshot", "protect", "unprotect", "snapshot all"}

func (k Kind) String() string { return kindNames[k] }

// Op is one operation of one client.
type Op struct {
	Kind     Kind
	N        int // number of the operation, which counts up for a client over all its runs
	Volume   string
	Snapshot string
	To       string        // new name, of Rename, Clone and RenameSnapshot
	Size     uint64        // bytes, of Create and Resize
	Ranges   []block.Range // of data operations; only Write has several
	First    Token         // of the first sector of a Write
	Volumes  []string      // of SnapshotAll
	FUA      bool
	// RecordBytes is the most that one log record takes; longer writes are several records. 0 is no limit.
	RecordBytes uint64
}

// String says what the operation does.
func (o *Op) String() string {
	s := fmt.Sprintf("op %d: %v %s", o.N, o.Kind, o.Volume)
	if o.Snapshot != "" {
		s += "@" + o.Snapshot
	}
	if o.To != "" {
		s += " to " + o.To
	}
	if o.Size != 0 {
		s += fmt.Sprintf(" size %d", o.Size)
	}
	for _, r := range o.Ranges {
		s += fmt.Sprintf(" %d+%d", r.Off, r.Len)
	}
	if o.FUA {
		s += " FUA"
	}
	return s
}

// Batch returns the writes of a Write.
func (o *Op) Batch() []block.Write {
	var batch []block.Write
	t := o.First
	for _, r := range o.Ranges {
		n := int(r.Len / sectorBytes)
		batch = append(batch, block.Write{Off: r.Off, Data: Payload(t, n)})
		t += Token(n)
	}
	return batch
}

// Target is a store that operations run on.
type Target interface {
	// Do runs an operation and returns nil when the store has replied that it is done.
	Do(ctx context.Context, op *Op) error
}

// effect is what one record of the log changes.
type effect func(*State)

// effects returns what the operation changes, record by record, in a store that is in state s.
func (o *Op) effects(s *State) []effect {
	switch o.Kind {
	case Write:
		return o.writeEffects()
	case Trim, Zero:
		return o.discardEffects(s.Volumes[o.Volume].Size)
	case Resize:
		return o.resizeEffects(s.Volumes[o.Volume].Size)
	case Clone:
		return o.cloneEffects()
	case Flush:
		return nil
	}
	return []effect{func(s *State) {
		v := s.Volumes[o.Volume]
		switch o.Kind {
		case Create:
			s.Volumes[o.Volume] = &Volume{Content: Content{Size: o.Size}, Snapshots: map[string]Content{}}
		case Delete:
			delete(s.Volumes, o.Volume)
		case Rename:
			delete(s.Volumes, o.Volume)
			s.Volumes[o.To] = v
		case Snapshot:
			v.Snapshots[o.Snapshot] = v.Content.clone()
		case DeleteSnapshot:
			delete(v.Snapshots, o.Snapshot)
		case Rollback:
			v.Content = v.Snapshots[o.Snapshot].clone()
		case RenameSnapshot:
			v.Snapshots[o.To] = v.Snapshots[o.Snapshot]
			delete(v.Snapshots, o.Snapshot)
		case SnapshotAll:
			for _, v := range s.Volumes {
				v.Snapshots[o.Snapshot] = v.Content.clone()
			}
		case Protect, Unprotect:
			c := v.Snapshots[o.Snapshot]
			c.Protected = o.Kind == Protect
			v.Snapshots[o.Snapshot] = c
		}
	}}
}

// setter is the effect of one record on a range of bytes.
func (o *Op) setter(off, n uint64, first Token) effect {
	return func(s *State) { s.Volumes[o.Volume].set(off/sectorBytes, n/sectorBytes, first) }
}

// writeEffects cuts each range where the log cuts it.
func (o *Op) writeEffects() (all []effect) {
	t := o.First
	for _, r := range o.Ranges {
		for r.Len > 0 {
			n := r.Len
			if o.RecordBytes > 0 {
				n = min(n, o.RecordBytes-r.Off%block.Size)
			}
			all = append(all, o.setter(r.Off, n, t))
			t += Token(n / sectorBytes)
			r.Off, r.Len = r.Off+n, r.Len-n
		}
	}
	return all
}

// discardEffects are those of a Trim, which changes whole blocks only, and of a Zero, which writes the parts of blocks at both ends by themselves.
func (o *Op) discardEffects(size uint64) (all []effect) {
	r := o.Ranges[0]
	first := (r.Off + block.Size - 1) / block.Size * block.Size
	last := r.End() / block.Size * block.Size
	if r.End() == size {
		last = (r.End() + block.Size - 1) / block.Size * block.Size
	}
	if first >= last {
		if o.Kind == Zero {
			// Both parts of the range lie in blocks of their own, or all of it in one.
			border := min(r.End(), (r.Off/block.Size+1)*block.Size)
			all = append(all, o.setter(r.Off, border-r.Off, 0))
			if border < r.End() {
				all = append(all, o.setter(border, r.End()-border, 0))
			}
		}
		return all
	}
	if o.Kind == Zero && r.Off < first {
		all = append(all, o.setter(r.Off, first-r.Off, 0))
	}
	if o.Kind == Zero && last < r.End() {
		all = append(all, o.setter(last, r.End()-last, 0))
	}
	end := min(last, size)
	return append(all, o.setter(first, end-first, 0))
}

// resizeEffects are those of a Resize: what a shrink leaves of a block that it cuts through is zeroed first.
func (o *Op) resizeEffects(old uint64) (all []effect) {
	if o.Size < old && o.Size%block.Size != 0 {
		end := min(old, (o.Size+block.Size-1)/block.Size*block.Size)
		all = append(all, o.setter(o.Size, end-o.Size, 0))
	}
	return append(all, func(s *State) {
		v := s.Volumes[o.Volume]
		if o.Size < v.Size {
			v.set(o.Size/sectorBytes, (v.Size-o.Size)/sectorBytes, 0)
		}
		v.Size = o.Size
	})
}

// hiddenSnapshot stands for the name of the snapshot that a clone of a volume's present content makes and removes.
const hiddenSnapshot = ".clone-"

// cloneEffects are those of a Clone. One of the present content makes a snapshot, clones that, and removes it.
func (o *Op) cloneEffects() []effect {
	name := o.Snapshot
	if name == "" {
		name = hiddenSnapshot
	}
	clone := func(s *State) {
		s.Volumes[o.To] = &Volume{Content: s.Volumes[o.Volume].Snapshots[name].clone(), Snapshots: map[string]Content{}}
	}
	if o.Snapshot != "" {
		return []effect{clone}
	}
	return []effect{
		func(s *State) { v := s.Volumes[o.Volume]; v.Snapshots[name] = v.Content.clone() },
		clone,
		func(s *State) { delete(s.Volumes[o.Volume].Snapshots, name) },
	}
}

// plainName replaces the random name of a hidden snapshot by the one that states use.
func plainName(snapshot string) string {
	if strings.HasPrefix(snapshot, hiddenSnapshot) {
		return hiddenSnapshot
	}
	return snapshot
}
