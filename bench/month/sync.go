package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/bench/wire"
)

const (
	blockBytes = 4096
	runBytes   = 1 << 20 // of a write at most, and what is read of a disk at a time
)

// diskReport is what a day was to a disk. Bytes are those of whole blocks of 4 KiB.
type diskReport struct {
	Name    string `json:"name"`
	Day     int    `json:"day"`
	NonZero int64  `json:"nonZeroBytes"` // of blocks that are not zero
	Changed int64  `json:"changedBytes"` // of these, what is not as it was the day before
	Unique  int64  `json:"uniqueBytes"`  // of these, what no disk had on any day before, nor one before it in the list on this day
	SHA256  string `json:"sha256"`       // of the whole disk
}

// syncDay brings the exports, and the books in dir, from the day before to this one, and returns the report. A day that was done already is only reported again.
func syncDay(ctx context.Context, dir string, day int, socket string, disks []string) ([]byte, error) {
	b, err := readBooks(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("day-%d.json", day))
	if b.day == day {
		return os.ReadFile(path)
	}
	if b.day != day-1 {
		return nil, fmt.Errorf("%s has the books of day %d; day %d cannot follow", dir, b.day, day)
	}
	passes, err := passAll(ctx, b, day, socket, disks)
	if err != nil {
		return nil, err
	}
	var report bytes.Buffer
	lines := json.NewEncoder(&report)
	for _, p := range passes {
		for _, s := range p.sums {
			if s == (sum{}) {
				continue
			}
			if _, known := b.seen[s]; !known {
				b.seen[s] = struct{}{}
				p.report.Unique += blockBytes
			}
		}
		b.disks[p.report.Name] = p.sums
		if err := lines.Encode(p.report); err != nil {
			return nil, err
		}
	}
	b.day = day
	if err := replace(path, func(out *bufio.Writer) { _, _ = out.Write(report.Bytes()) }); err != nil {
		return nil, err
	}
	return report.Bytes(), b.write(dir)
}

// passAll goes through the disks, as many at a time as there are cores.
func passAll(ctx context.Context, b *books, day int, socket string, disks []string) ([]*pass, error) {
	passes, failed := make([]*pass, len(disks)), make([]error, len(disks))
	for i, disk := range disks {
		name, path, ok := strings.Cut(disk, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not NAME=DISK\n%w", disk, errUsage)
		}
		old, known := b.disks[name]
		if !known {
			old = b.disks["base"]
		}
		passes[i] = &pass{path: path, old: old, report: diskReport{Name: name, Day: day}}
	}
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for i, p := range passes {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := p.run(ctx, socket); err != nil {
				failed[i] = fmt.Errorf("%s on day %d: %w", p.path, day, err)
			}
		})
	}
	wg.Wait()
	return passes, errors.Join(failed...)
}

// pass is one way through a disk.
type pass struct {
	path   string
	old    []sum // as it was the day before; may be shorter, the rest was zeroes then
	sums   []sum
	report diskReport
	to     *wire.Conn // nil: nothing is written
}

func (p *pass) run(ctx context.Context, socket string) error {
	f, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if socket != "-" {
		if p.to, err = wire.Open(ctx, socket, p.report.Name); err != nil {
			return err
		}
		defer p.to.Close()
	}
	whole, piece := sha256.New(), make([]byte, runBytes)
	for at := int64(0); ; {
		n, err := io.ReadFull(f, piece)
		if n%blockBytes != 0 {
			return fmt.Errorf("its length is no multiple of %d", blockBytes)
		}
		whole.Write(piece[:n])
		if err := p.piece(at, piece[:n]); err != nil {
			return err
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	p.report.SHA256 = hex.EncodeToString(whole.Sum(nil))
	if p.to == nil {
		return nil
	}
	return p.to.Do(wire.Flush, 0, 0, nil)
}

// What has happened to a block.
const (
	same = iota
	cleared
	changed
)

// piece looks at what lies at offset at, and writes each run of blocks to which the same has happened.
func (p *pass) piece(at int64, data []byte) error {
	begin, what := 0, same
	for off := 0; off < len(data); off += blockBytes {
		w := p.block(at+int64(off), data[off:off+blockBytes])
		if w != what {
			if err := p.write(what, at+int64(begin), data[begin:off]); err != nil {
				return err
			}
			begin, what = off, w
		}
	}
	return p.write(what, at+int64(begin), data[begin:])
}

var zeroes [blockBytes]byte

func (p *pass) block(at int64, data []byte) int {
	var now, before sum
	if !bytes.Equal(data, zeroes[:]) {
		h := sha256.Sum256(data)
		now = sum(h[:len(now)])
		p.report.NonZero += blockBytes
	}
	p.sums = append(p.sums, now)
	if i := at / blockBytes; i < int64(len(p.old)) {
		before = p.old[i]
	}
	switch {
	case now == before:
		return same
	case now == sum{}:
		return cleared
	}
	p.report.Changed += blockBytes
	return changed
}

func (p *pass) write(what int, at int64, data []byte) error {
	if p.to == nil || len(data) == 0 {
		return nil
	}
	switch what {
	case cleared:
		return p.to.Do(wire.Zeroes, uint64(at), uint32(len(data)), nil)
	case changed:
		return p.to.Do(wire.Write, uint64(at), uint32(len(data)), data)
	}
	return nil
}
