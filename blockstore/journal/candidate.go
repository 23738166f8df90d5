package journal

import (
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

// candidate is a file in the directory of the log.
type candidate struct {
	*logFile
	id    uint32
	state candidateState
	size  int64
}

// listCandidates opens every log file in the directory, by ascending id, and reads its header. It returns those that it opened on an error
// as well.
func listCandidates(opts Options) (found []*candidate, err error) {
	names, err := opts.FS.List(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("list log directory: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		id, ok := parseFileName(name)
		if !ok {
			continue
		}
		path := opts.FS.PathJoin(opts.Dir, name)
		f, err := vfs.OpenUpdate(opts.FS, path)
		if err != nil {
			return found, fmt.Errorf("open %s: %w", fileSource(id), err)
		}
		c := &candidate{logFile: &logFile{f: f, path: path}, id: id}
		found = append(found, c)
		if err := c.inspect(opts); err != nil {
			return found, err
		}
	}
	return found, nil
}

// inspect reads the header of the file.
func (c *candidate) inspect(opts Options) error {
	st, err := c.f.Stat()
	if err != nil {
		return fmt.Errorf("%s: %w", fileSource(c.id), err)
	}
	c.size = st.Size()
	page := make([]byte, pageSize)
	if err := readZeroFilled(c.f, page, 0); err != nil {
		return fmt.Errorf("read header of %s: %w", fileSource(c.id), err)
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
		return inFile(c.id, err)
	}
	switch {
	case c.header.StoreID != opts.StoreID:
		return &block.CorruptError{Source: fileSource(c.id), Offset: 16, Want: "store " + opts.StoreID.String(), Got: c.header.StoreID.String()}
	case c.header.OwnerEpoch > opts.OwnerEpoch:
		return fmt.Errorf("%s was written by owner epoch %d, this is %d: %w", fileSource(c.id), c.header.OwnerEpoch, opts.OwnerEpoch, block.ErrInUse)
	case c.header.ID > c.id:
		c.state = garbled
	case c.header.ID == c.id:
		c.state = valid
	}
	if c.state == valid && c.header.BootEpoch >= opts.BootEpoch {
		return fmt.Errorf("%s was written by boot epoch %d, this is %d: %w", fileSource(c.id), c.header.BootEpoch, opts.BootEpoch, block.ErrInvalid)
	}
	return nil
}
