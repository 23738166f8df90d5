package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// sum is the beginning of the SHA-256 of a block; all zero for a block of zeroes.
type sum [16]byte

// books is what is known of the disks at the end of a day.
type books struct {
	day   int
	disks map[string][]sum // of each block, in order
	seen  map[sum]struct{} // each block that there ever was, without the one of zeroes
}

// header is the first line of the file of books. After it come the sums of each disk, then all that were ever seen.
type header struct {
	Day   int          `json:"day"`
	Disks []diskHeader `json:"disks"`
	Seen  int          `json:"seen"`
}

type diskHeader struct {
	Name   string `json:"name"`
	Blocks int    `json:"blocks"`
}

const (
	mostHeader = 1 << 20
	mostBlocks = 1 << 32
)

// readBooks returns the books of a folder; those of a day before the first one if there are none yet.
func readBooks(dir string) (*books, error) {
	b := &books{day: -1, disks: map[string][]sum{}, seen: map[sum]struct{}{}}
	path := filepath.Join(dir, "books")
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := b.read(bufio.NewReaderSize(f, mostHeader)); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

func (b *books) read(in *bufio.Reader) error {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	var h header
	if err := json.Unmarshal(line, &h); err != nil {
		return err
	}
	b.day = h.Day
	for _, d := range h.Disks {
		if d.Blocks < 0 || d.Blocks > mostBlocks {
			return fmt.Errorf("%d blocks of %s", d.Blocks, d.Name)
		}
		var sums []sum
		for range d.Blocks {
			var s sum
			if _, err := io.ReadFull(in, s[:]); err != nil {
				return err
			}
			sums = append(sums, s)
		}
		b.disks[d.Name] = sums
	}
	for range h.Seen {
		var s sum
		if _, err := io.ReadFull(in, s[:]); err != nil {
			return err
		}
		b.seen[s] = struct{}{}
	}
	return nil
}

// write replaces the books of a folder. They are durable when it returns.
func (b *books) write(dir string) error {
	h := header{Day: b.day, Seen: len(b.seen)}
	for name, sums := range b.disks {
		h.Disks = append(h.Disks, diskHeader{name, len(sums)})
	}
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return replace(filepath.Join(dir, "books"), func(out *bufio.Writer) {
		_, _ = out.Write(append(line, '\n')) // the writer keeps its error for Flush
		for _, d := range h.Disks {
			for _, s := range b.disks[d.Name] {
				_, _ = out.Write(s[:])
			}
		}
		for s := range b.seen {
			_, _ = out.Write(s[:])
		}
	})
}

// replace writes a file and syncs it before it takes the place of the one of that name.
func replace(path string, write func(*bufio.Writer)) error {
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(f, 1<<20)
	write(out)
	if err := errors.Join(out.Flush(), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
