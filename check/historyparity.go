package check

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// docs/format/history.md, "Parity"
const (
	historySidecar = ".par"
	historyPart    = 64 << 20 // bytes of a file that one sidecar covers
	// superHistoryParity is the ro-compat feature: files of history may have sidecars.
	superHistoryParity = 1 << 2
)

// historyPartID is what the sidecar of a part of a file of history has in the place of a segment's id.
func historyPartID(id uint32, part int) uint64 { return 1<<63 | uint64(id)<<32 | uint64(part) }

// checkHistorySidecars compares the sidecars in the directory of a volume's history with the files beside them.
func (r *run) checkHistorySidecars(dir string, names []fs.DirEntry) error {
	for _, e := range names {
		unit := filepath.Join(dir, e.Name())
		var id uint32
		n, _ := fmt.Sscanf(e.Name(), "%08x.", &id)
		switch {
		case n != 1:
		case strings.HasSuffix(e.Name(), historySidecar+".tmp"), strings.HasSuffix(e.Name(), historySuffix+".mend"):
			r.warn(unit, 0, "files that are in use", "one that the next start removes: a death came while it was made")
		case e.Name() == fmt.Sprintf("%08x%s", id, historySidecar):
			if err := r.progress(unit); err != nil {
				return err
			}
			if err := r.checkHistoryParity(unit, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkHistoryParity compares a sidecar with the file beside it.
func (r *run) checkHistoryParity(unit string, id uint32) error {
	r.expect(r.super.ROCompat&superHistoryParity != 0, unit, 0, "no parity of history without the feature in the superblock", "some")
	par, err := os.ReadFile(filepath.Join(r.dir, unit))
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(r.dir, strings.TrimSuffix(unit, historySidecar)+historySuffix))
	if os.IsNotExist(err) {
		r.warn(unit, 0, "a sidecar beside a file of history", "one without it, which the next start removes")
		return nil
	}
	if err != nil {
		return err
	}
	r.rep.Totals.HistoryParity += uint64(len(par))
	any := anyParityHead(par)
	if any == nil {
		r.fail(unit, 0, "a head of parity that can be read", "none")
		return nil
	}
	if len(b) < historyHead+historyFoot {
		r.fail(unit, 0, "a sidecar of a file that is sealed", fmt.Sprintf("one of a file of %d B", len(b)))
		return nil
	}
	le := binary.LittleEndian
	of := parityOf{path: unit, generation: le.Uint32(b[historyHead-4:]), footer: le.Uint32(b[len(b)-4:])}
	if any.Generation != of.generation && any.FooterCRC != of.footer {
		r.warn(unit, 32, fmt.Sprintf("parity of a file with header %08x and footer %08x", of.generation, of.footer), fmt.Sprintf("that of one with %08x and %08x, which hvd replaces", any.Generation, any.FooterCRC))
		return nil
	}
	r.checkHistoryParts(&of, int(any.Data), int(any.Parity), id, b, par)
	return nil
}

// checkHistoryParts compares the sidecar of each part of a file.
func (r *run) checkHistoryParts(of *parityOf, k, m int, id uint32, b, par []byte) {
	if r.field == nil {
		r.field = newGalois()
	}
	generator := r.field.generator(k, m)
	for part := 0; len(b) > 0; part++ {
		piece := b[:min(len(b), historyPart)]
		shape := newParityShape(k, m, int64(len(piece)))
		n := shape.at(shape.groups)
		if !r.expect(len(par) >= n && (len(par) == n || len(b) > historyPart), of.path, int64(of.base+min(len(par), n)), fmt.Sprintf("%d B of a sidecar %d+%d", n, k, m), fmt.Sprintf("%d B", len(par))) {
			return
		}
		of.segment = historyPartID(id, part)
		for g := range shape.groups {
			r.checkParityGroup(of, &shape, generator, g, piece, par[:n])
		}
		b, par, of.base = b[len(piece):], par[n:], of.base+n
	}
}

// anyParityHead is the first head in a sidecar that can be read.
func anyParityHead(par []byte) *parityHeadPart {
	for at := 0; at+parityHead <= len(par); at += parityHead {
		if h, err := parseParityHead(par[at : at+parityHead]); err == nil {
			return h
		}
	}
	return nil
}
