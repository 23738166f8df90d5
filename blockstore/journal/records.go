package journal

import (
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// LiveFile is a file of the log that is not released.
type LiveFile struct {
	ID       uint32
	FirstSeq uint64 // of its first record, or of the next one
	Sealed   bool   // its index can be read
}

// LiveFiles lists the files that are not released, oldest first. The last one is being filled.
func (l *Log) LiveFiles() []LiveFile {
	l.st.Lock()
	defer l.st.Unlock()
	all := make([]LiveFile, 0, len(l.st.live))
	for _, f := range l.st.live {
		all = append(all, LiveFile{ID: f.header.ID, FirstSeq: f.header.FirstSeq, Sealed: f.sealed})
	}
	return all
}

// errPast ends a walk over records.
var errPast = errors.New("past the last record that is wanted")

// Records hands the records with after < seq ≤ upTo of one live file to visit, in order. The caller knows that they are durable, and keeps the file from being released. The index of a sealed file is used; another file is
// read as recovery would, beside the appender. It returns block.ErrNotFound for a file that is not live, and block.ErrCorrupt when it ends before upTo though it should not.
func (l *Log) Records(id uint32, after, upTo uint64, visit func(*Replayed) error) error {
	pin := l.Pin()
	defer pin.Release()
	live := l.lookup(id)
	if live == nil {
		return fmt.Errorf("read records of %s: %w", fileSource(id), block.ErrNotFound)
	}
	l.st.Lock()
	sealed := live.sealed
	l.st.Unlock()
	// A look of its own at the file: nothing of what appender and sealer work with is shared.
	f := &logFile{f: live.source(), path: live.path, header: live.header, seed: live.seed}
	if live.vault != nil {
		page := make([]byte, pageSize)
		if err := vfs.ReadFull(f.f, page, 0); err != nil {
			return inFile(id, err)
		}
		var err error
		if f.vault, err = openVault(l.opts.Keys, &f.header, page); err != nil {
			return inFile(id, err)
		}
	}
	last := live.header.FirstSeq - 1
	each := func(r *Replayed) error {
		if r.Seq > upTo {
			return errPast
		}
		if last = r.Seq; r.Seq <= after {
			return nil
		}
		return visit(r)
	}
	err := f.walk(sealed, each)
	if err == errPast {
		return nil
	}
	if err == nil && !sealed && last < upTo && l.endsAt(id) > last {
		err = endTooEarly(f, upTo)
	}
	return err
}

// walk visits the records of a file.
func (f *logFile) walk(sealed bool, visit func(*Replayed) error) error {
	if !sealed {
		return scan(f, new(reader), 0, visit)
	}
	ft, ok, err := readFooter(f)
	if err != nil {
		return err
	}
	if !ok {
		return inFile(f.header.ID, damaged("a footer", f.dataLimit()))
	}
	return readByIndex(f, &ft, visit)
}

// endsAt is the last sequence number that is durable in a file that is live.
func (l *Log) endsAt(id uint32) uint64 {
	l.st.Lock()
	defer l.st.Unlock()
	for i, f := range l.st.live {
		if f.header.ID == id && i+1 < len(l.st.live) {
			return min(l.st.durableSeq, l.st.live[i+1].header.FirstSeq-1)
		}
	}
	return l.st.durableSeq
}
