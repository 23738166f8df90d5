package check

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
)

// docs/format/copies.md
const (
	copiesTrailer = 64
	copiesEntry   = 32
	copiesMost    = 1 << 16
)

// CopiesDump is a file of second copies: what it holds, and which of it passes its checksum.
type CopiesDump struct {
	File   string         `json:"file"`
	Size   int64          `json:"size"`
	Store  string         `json:"store,omitempty"`
	Error  string         `json:"error,omitempty"` // why the table cannot be read; there are no frames then
	Frames []CopyOfAFrame `json:"frames"`
}

// CopyOfAFrame is one frame of it.
type CopyOfAFrame struct {
	Segment    uint64 `json:"segment"`
	Generation uint32 `json:"generation"`
	Offset     uint32 `json:"offset"` // in the segment
	Length     uint32 `json:"length"`
	At         uint64 `json:"at"` // in the file
	Damaged    bool   `json:"damaged,omitempty"`
}

// DumpCopies reads a file of second copies. It needs no store.
func DumpCopies(path string) (*CopiesDump, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("dump second copies: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("dump second copies: %w", err)
	}
	d := &CopiesDump{File: path, Size: st.Size(), Frames: []CopyOfAFrame{}}
	if err := d.read(f); err != nil {
		d.Error, d.Frames = err.Error(), []CopyOfAFrame{}
	}
	return d, nil
}

func (d *CopiesDump) read(r io.ReaderAt) error {
	t := make([]byte, copiesTrailer)
	if n, err := r.ReadAt(t, d.Size-copiesTrailer); n < len(t) {
		return fmt.Errorf("read the trailer: %w", err)
	}
	f := &fields{b: t}
	f.magic("HNCOPIES")
	if f.err == nil {
		f.err = checkSum(copiesTrailer-4, crc(t[:copiesTrailer-4]), binary.LittleEndian.Uint32(t[copiesTrailer-4:]))
	}
	f.version(4)
	n := int64(f.u32())
	store := f.take(16)
	f.reserved(24)
	f.rule(n <= copiesMost && n*copiesEntry <= d.Size-copiesTrailer, 12, "a table inside the file", "%d frames", n)
	if f.err != nil {
		return f.err
	}
	d.Store = fmt.Sprintf("%x", store)
	table := make([]byte, n*copiesEntry)
	end := d.Size - copiesTrailer - int64(len(table))
	if m, err := r.ReadAt(table, end); m < len(table) {
		return fmt.Errorf("read the table: %w", err)
	}
	if err := checkSum(56, crc(table), binary.LittleEndian.Uint32(t[56:])); err != nil {
		return err
	}
	return d.frames(r, table, uint64(end))
}

func (d *CopiesDump) frames(r io.ReaderAt, table []byte, end uint64) error {
	for f := (&fields{b: table}); f.at < len(table); {
		c := CopyOfAFrame{Segment: f.u64(), Generation: f.u32(), Offset: f.u32(), Length: f.u32()}
		sum := f.u32()
		c.At = f.u64()
		if uint64(c.Length) > segMaxSize || c.At+uint64(c.Length) > end || c.At > end {
			return fmt.Errorf("frame of segment %d at %d: %d B at %d of the file, whose frames end at %d", c.Segment, c.Offset, c.Length, c.At, end)
		}
		b := make([]byte, c.Length)
		n, _ := r.ReadAt(b, int64(c.At))
		c.Damaged = n < len(b) || crc(b) != sum
		d.Frames = append(d.Frames, c)
	}
	return nil
}

// WriteText writes a line for the file and one for each frame.
func (d *CopiesDump) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "second copies %s, %d B, %d frames, store %s\n", d.File, d.Size, len(d.Frames), d.Store)
	if d.Error != "" {
		fmt.Fprintf(&b, "  %s\n", d.Error)
	}
	for _, c := range d.Frames {
		state := ""
		if c.Damaged {
			state = ", damaged"
		}
		fmt.Fprintf(&b, "  %10d  segment %d generation %d at %d+%d%s\n", c.At, c.Segment, c.Generation, c.Offset, c.Length, state)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
