package journal

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// Piece is a part of what is read by ReadScattered: what ReadAt is called with.
type Piece struct {
	P    []byte
	Pos  Pos
	Sums []uint32
}

// touchAtOnce is how many pieces are touched before the first of them is copied. The page of a block that was written alone is in no translation buffer, and to find it takes as long as to copy it; eight
// can be looked up at the same time.
const touchAtOnce = 8

// ReadScattered is ReadAt for many short pieces that lie anywhere. It copies out of the mapped files. After an error the content of the pieces is undefined.
func (l *Log) ReadScattered(pieces []Piece) error {
	for len(pieces) > 0 {
		n := min(touchAtOnce, len(pieces))
		if err := l.readFew(pieces[:n]); err != nil {
			return err
		}
		pieces = pieces[n:]
	}
	return nil
}

// readFew reads up to touchAtOnce pieces.
func (l *Log) readFew(pieces []Piece) error {
	var mapped [touchAtOnce][]byte
	var vaults [touchAtOnce]*vault
	for i := range pieces {
		p := &pieces[i]
		f := l.lookup(p.Pos.File())
		if f == nil {
			return l.noFile(p.Pos)
		}
		view := f.view()
		if view == nil || len(p.P) > mappedMost || len(p.P) != len(p.Sums)*sectorSize {
			if err := l.ReadAt(p.P, p.Pos, p.Sums); err != nil {
				return err
			}
			continue
		}
		src, err := view.Slice(p.Pos.Offset(), len(p.P))
		if err != nil {
			return fmt.Errorf("read %s at %d+%d: %w", fileSource(p.Pos.File()), p.Pos.Offset(), len(p.P), err)
		}
		mapped[i], vaults[i] = src, f.vault
	}
	err := copyChecked(pieces, &mapped)
	if err == nil && l.opts.Keys != nil {
		err = openFew(pieces, &vaults)
	}
	if err == nil || l.dirs == nil {
		return err
	}
	for i := range pieces { // another directory may have what this one has lost
		if err := l.ReadAt(pieces[i].P, pieces[i].Pos, pieces[i].Sums); err != nil {
			return err
		}
	}
	return nil
}

// openFew opens the pieces that were copied out of files of an encrypted log. The others are open already.
func openFew(pieces []Piece, vaults *[touchAtOnce]*vault) error {
	for i := range pieces {
		if p := &pieces[i]; vaults[i] != nil {
			if err := vaults[i].open(p.P, p.Pos.File(), p.Pos.Offset()); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyChecked copies pieces that are mapped and checks them while they are at hand.
func copyChecked(pieces []Piece, mapped *[touchAtOnce][]byte) error {
	var bad error
	at, touched := 0, byte(0)
	err := vfs.Guard(func() {
		for at = range pieces {
			if src := mapped[at]; len(src) > 0 {
				touched ^= src[0]
			}
		}
		for at = range pieces {
			if src := mapped[at]; len(src) > 0 && bad == nil {
				p := &pieces[at]
				copy(p.P, src)
				bad = verify(p.P, p.Pos, p.Sums)
			}
		}
	})
	_ = touched
	if err != nil {
		pos := pieces[at].Pos
		return fmt.Errorf("read %s at %d: %w", fileSource(pos.File()), pos.Offset(), err)
	}
	return bad
}
