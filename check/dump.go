package check

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A dump shows what is on disk as it is decoded, without judging how the parts fit together. Every type marshals to JSON, and writes itself for people.

// SuperDump is both copies of the superblock.
type SuperDump struct {
	Copies []SuperCopy `json:"copies"`
}

// SuperCopy is one of them.
type SuperCopy struct {
	File       string `json:"file"`
	Error      string `json:"error,omitempty"` // why it cannot be read; nothing below is set then
	Generation uint64 `json:"generation"`
	StoreID    string `json:"storeId"`
	DomainID   string `json:"domainId"`
	Compat     uint64 `json:"compat"`
	ROCompat   uint64 `json:"roCompat"`
	Incompat   uint64 `json:"incompat"`
	Clean      bool   `json:"closedClean"`
	Ready      bool   `json:"initialized"`
	CreatedNs  int64  `json:"createdNs"`
	BootEpoch  uint64 `json:"bootEpoch"`
	OwnerEpoch uint64 `json:"ownerEpoch"`
	Cut        string `json:"cut"`
}

// DumpSuper reads both superblocks. It needs no lock: a copy is replaced as a whole.
func DumpSuper(dir string) (*SuperDump, error) {
	copies, errs, err := readSupers(dir)
	if err != nil {
		return nil, fmt.Errorf("dump superblocks of %s: %w", dir, err)
	}
	if errors.Is(errs[0], fs.ErrNotExist) && errors.Is(errs[1], fs.ErrNotExist) {
		return nil, fmt.Errorf("dump superblocks of %s: no superblock; is this the data directory of a store?: %w", dir, block.ErrNotFound)
	}
	d := &SuperDump{}
	for i, s := range copies {
		c := SuperCopy{File: superName(i)}
		if errs[i] != nil {
			c.Error = errs[i].Error()
		} else {
			c = SuperCopy{
				File: c.File, Generation: s.Generation, StoreID: s.StoreID.String(), DomainID: fmt.Sprintf("%x", s.DomainID), Compat: s.Compat, ROCompat: s.ROCompat, Incompat: s.Incompat,
				Clean: s.Flags&superClean != 0, Ready: s.Flags&superReady != 0, CreatedNs: s.CreatedNs, BootEpoch: s.BootEpoch, OwnerEpoch: s.OwnerEpoch, Cut: s.Cut.String(),
			}
		}
		d.Copies = append(d.Copies, c)
	}
	return d, nil
}

// WriteText writes a block of lines for each copy.
func (d *SuperDump) WriteText(w io.Writer) error {
	var b strings.Builder
	for _, c := range d.Copies {
		if c.Error != "" {
			fmt.Fprintf(&b, "%s: %s\n", c.File, c.Error)
			continue
		}
		fmt.Fprintf(&b, "%s: generation %d, store %s, domain %s\n", c.File, c.Generation, c.StoreID, c.DomainID)
		fmt.Fprintf(&b, "  closed in order %t, initialized %t, boot epoch %d, owner epoch %d, cut %s\n", c.Clean, c.Ready, c.BootEpoch, c.OwnerEpoch, c.Cut)
		fmt.Fprintf(&b, "  features: compat %#x, ro-compat %#x, incompat %#x\n", c.Compat, c.ROCompat, c.Incompat)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// LogDump is a log file.
type LogDump struct {
	File    string       `json:"file"`
	State   string       `json:"state"` // "sealed", "open", "unused" or "damaged"
	Error   string       `json:"error,omitempty"`
	Header  *logHeader   `json:"header,omitempty"`
	Footer  *logFooter   `json:"footer,omitempty"`
	Count   uint64       `json:"wholeRecords"`
	End     int64        `json:"end"`               // offset behind the last whole record
	Stopped string       `json:"stopped,omitempty"` // what is wrong with the bytes there
	Records []*logRecord `json:"records,omitempty"`
}

// DumpLog reads the files of the log; with id not 0 that one alone, with its records. Of an encrypted store what control records say is shown with a key alone; ErrWrongKey if unwrap does not open one.
func DumpLog(dir string, id uint32, unwrap Unwrap) ([]*LogDump, error) {
	unlock, err := lockShared(dir)
	if err != nil {
		return nil, fmt.Errorf("dump log of %s: %w", dir, err)
	}
	defer unlock()
	keys, err := ringOf(dir, unwrap)
	if err != nil {
		return nil, fmt.Errorf("dump log of %s: %w", dir, err)
	}
	ids, _, err := listLog(dir)
	if err == nil && id != 0 {
		if !slices.Contains(ids, id) {
			err = fmt.Errorf("log file %08x: %w", id, block.ErrNotFound)
		}
		ids = []uint32{id}
	}
	all := []*LogDump{}
	for _, n := range ids {
		var d *LogDump
		if err == nil {
			d, err = dumpLogFile(dir, n, id != 0, keys)
			all = append(all, d)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("dump log of %s: %w", dir, err)
	}
	return all, nil
}

func dumpLogFile(dir string, id uint32, records bool, keys *ring) (*LogDump, error) {
	lf, file, err := openLogFile(dir, id)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	d := &LogDump{File: lf.path, Header: lf.header, Footer: lf.footer, State: "open"}
	switch {
	case lf.unused:
		d.State = "unused"
		return d, nil
	case lf.headErr != nil:
		d.State, d.Error = "damaged", lf.headErr.Error()
		return d, nil
	case lf.footer != nil:
		d.State = "sealed"
	}
	if keys != nil && lf.header.KeyID != 0 {
		page := make([]byte, logPage)
		if err := readZeroFilled(file, page, 0); err != nil {
			return nil, err
		}
		if lf.keys, err = keys.logKeys(lf.header.KeyID, page); err != nil {
			d.State, d.Error = "damaged", err.Error()
			return d, nil
		}
	}
	err = lf.scan(file, 0, func(rec *logRecord) error {
		if !records {
			return nil
		}
		if rec.Kind >= firstControl && (lf.header.KeyID == 0 || lf.keys != nil) {
			if c, err := parseControl(rec); err != nil {
				rec.Control = err.Error()
			} else {
				rec.Control = c
			}
		}
		rec.sums, rec.payload = nil, nil
		d.Records = append(d.Records, rec)
		return nil
	})
	d.Count, d.End = lf.records, lf.end
	if lf.stop != nil && (lf.footer == nil || lf.records != lf.footer.Records) {
		d.Stopped = lf.stop.Error()
	}
	return d, err
}

// WriteText writes a line for the file and one for each record.
func (d *LogDump) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", d.File, d.State)
	if h := d.Header; h != nil {
		fmt.Fprintf(&b, ", boot %d, behind %08x, %d records from %d on, end %d of %d", h.BootEpoch, h.PrevID, d.Count, h.FirstSeq, d.End, h.Capacity)
	}
	if d.Error+d.Stopped != "" {
		fmt.Fprintf(&b, "; %s%s", d.Error, d.Stopped)
	}
	b.WriteByte('\n')
	for _, r := range d.Records {
		name := recordNames[r.Kind]
		if name == "" {
			name = fmt.Sprint("kind ", r.Kind)
		}
		fmt.Fprintf(&b, "  %10d  seq %d  %-15s volume %d epoch %d  %d+%d", r.At, r.Seq, name, r.Volume, r.MapEpoch, r.Off, r.Len)
		if c, ok := r.Control.(*control); ok {
			fmt.Fprintf(&b, "  name %q size %d node %d mode %d", c.Name, c.Size, c.Node, c.Mode)
			for _, m := range c.Members {
				fmt.Fprintf(&b, "\n              volume %d name %q node %d", m.Volume, m.Name, m.Node)
			}
		} else if r.Control != nil {
			fmt.Fprintf(&b, "  %v", r.Control)
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// ParseLogID reads the id of a log file as people write it: 0000001a, with or without ".log" and zeroes.
func ParseLogID(s string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(s), ".log"), 16, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("log file %q: want its id in hexadecimal, as in its name: %w", s, block.ErrInvalid)
	}
	return uint32(n), nil
}
