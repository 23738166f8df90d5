package journal

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// candidateState is what the header of a file says about it.
type candidateState int

const (
	unused   candidateState = iota // prepared, and never begun: no header, or that of the life before
	valid                          // has a header that fits its name
	garbled                        // neither: header and footer are written by whole sectors, so this is damage and not a torn write
	accepted                       // valid, and part of the log
)

// candidate is a file of the log, in each directory that has it.
type candidate struct {
	*logFile // the copy that recovery reads
	id       uint32
	state    candidateState
	size     int64
	copies   []*fileCopy
}

// fileCopy is a candidate in one directory.
type fileCopy struct {
	place  *place
	f      vfs.File
	path   string
	header FileHeader
	seed   uint32
	vault  *vault
	state  candidateState
	size   int64
}

// listCandidates opens every log file in the directories that are in sync, by ascending id, and reads its header. It returns those that it opened on an error as well.
func listCandidates(opts Options, places []*place) (found []*candidate, err error) {
	byID := map[uint32]*candidate{}
	for _, p := range places {
		if len(places) > 1 && !p.is(placeIn) {
			continue
		}
		names, err := opts.FS.List(p.dir)
		if err != nil {
			return found, fmt.Errorf("list log directory: %w", err)
		}
		for _, name := range names {
			id, ok := parseFileName(name)
			if !ok {
				continue
			}
			c := byID[id]
			if c == nil {
				c = &candidate{id: id}
				byID[id] = c
				found = append(found, c)
			}
			if err := c.open(opts, p, opts.FS.PathJoin(p.dir, name)); err != nil {
				return found, err
			}
		}
	}
	slices.SortFunc(found, func(a, b *candidate) int { return cmp.Compare(a.id, b.id) })
	for _, c := range found {
		c.take(c.best())
	}
	return found, nil
}

// open opens the file in one directory and reads its header.
func (c *candidate) open(opts Options, p *place, path string) error {
	f, err := vfs.OpenUpdate(opts.FS, path)
	if err != nil {
		return fmt.Errorf("open %s: %w", fileSource(c.id), err)
	}
	k := &fileCopy{place: p, f: f, path: path}
	c.copies = append(c.copies, k)
	return k.inspect(opts, c.id)
}

// best returns the copy that says most: one that was begun before one that was not, and that before a damaged one.
func (c *candidate) best() *fileCopy {
	for _, state := range []candidateState{valid, unused, garbled} {
		for _, k := range c.copies {
			if k.state == state {
				return k
			}
		}
	}
	return c.copies[0]
}

// take makes a copy the one that is read.
func (c *candidate) take(k *fileCopy) {
	c.logFile = &logFile{f: k.f, path: k.path, header: k.header, seed: k.seed, vault: k.vault, home: k.place}
	c.state, c.size = k.state, k.size
}

// closeFiles closes every copy. It may be called again.
func (c *candidate) closeFiles() {
	for _, k := range c.copies {
		if k.f != nil {
			_ = k.f.Close()
			k.f = nil
		}
	}
}

// inspect reads the header of the file.
func (c *fileCopy) inspect(opts Options, id uint32) error {
	st, err := c.f.Stat()
	if err != nil {
		return fmt.Errorf("%s: %w", fileSource(id), err)
	}
	c.size = st.Size()
	page := make([]byte, pageSize)
	if err := readZeroFilled(c.f, page, 0); err != nil {
		return fmt.Errorf("read header of %s: %w", fileSource(id), err)
	}
	if allZero(page) {
		return nil
	}
	c.header, c.seed, err = ParseFileHeader(page)
	if _, corrupt := err.(*block.CorruptError); corrupt {
		c.state = garbled
		return nil
	}
	if err != nil {
		return inFile(id, err)
	}
	switch {
	case c.header.StoreID != opts.StoreID:
		return &block.CorruptError{Source: fileSource(id), Offset: 16, Want: "store " + opts.StoreID.String(), Got: c.header.StoreID.String()}
	case c.header.OwnerEpoch > opts.OwnerEpoch:
		return fmt.Errorf("%s was written by owner epoch %d, this is %d: %w", fileSource(id), c.header.OwnerEpoch, opts.OwnerEpoch, block.ErrInUse)
	case c.header.ID > id:
		c.state = garbled
	case c.header.ID == id:
		c.state = valid
	}
	if c.state != valid {
		return nil
	}
	if c.vault, err = openVault(opts.Keys, &c.header, page); err != nil {
		return inFile(id, err)
	}
	if c.header.BootEpoch >= opts.BootEpoch {
		return fmt.Errorf("%s was written by boot epoch %d, this is %d: %w", fileSource(id), c.header.BootEpoch, opts.BootEpoch, block.ErrInvalid)
	}
	return nil
}
