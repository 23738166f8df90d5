package check

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// ShardDump is a shard of a segment: its head, and which of it passes its checksums.
type ShardDump struct {
	File       string `json:"file"`
	Size       int64  `json:"size"`
	Error      string `json:"error,omitempty"` // why the head cannot be read; nothing below is set then
	Data       int    `json:"data"`            // k
	Parity     int    `json:"parity"`          // m
	Index      int    `json:"index"`           // from 0 on, data before parity
	Store      string `json:"store"`
	Segment    uint64 `json:"segment"`
	Generation uint32 `json:"generation"`
	FooterCRC  uint32 `json:"footerCrc"` // of the segment
	Bytes      uint64 `json:"segmentBytes"`
	Columns    int    `json:"columns"` // of 4 KiB, in this shard
	// OtherName says that the file has not the name that its head asks for.
	OtherName string `json:"otherName,omitempty"`
	// DamagedPages are pages of checksums that fail their own; DamagedColumns fail theirs, or have none that can be believed, or are not there.
	DamagedPages   []int `json:"damagedPages,omitempty"`
	DamagedColumns []int `json:"damagedColumns,omitempty"`
}

// maxShardFile is the length of the longest shard: a whole segment and its sums.
const maxShardFile = segMaxSize + shardHead*(2+segMaxSize/shardColumn/shardSums)

// DumpShard reads the shard in a file. It needs neither the other shards nor a store.
func DumpShard(path string) (*ShardDump, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("dump shard: %w", err)
	}
	if st.Size() > maxShardFile {
		return nil, fmt.Errorf("dump shard: %s has %d B, a shard at most %d: %w", path, st.Size(), maxShardFile, block.ErrInvalid)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("dump shard: %w", err)
	}
	d := &ShardDump{File: path, Size: int64(len(b))}
	if err := d.head(b); err != nil {
		*d = ShardDump{File: path, Size: int64(len(b)), Error: err.Error()}
		return d, nil
	}
	d.columns(b)
	want := fmt.Sprintf("%016x.%08x.%d+%d.%02d.%08x%s", d.Segment, d.Generation, d.Data, d.Parity, d.Index, d.Bytes, shardSuffix)
	if filepath.Base(path) != want {
		d.OtherName = want
	}
	return d, nil
}

func (d *ShardDump) head(b []byte) error {
	f := &fields{b: b[:min(len(b), shardHead)]}
	f.magic("HNSHARD\n")
	if f.err == nil && len(b) >= shardHead {
		f.err = checkSum(shardHead-4, crc(b[:shardHead-4]), binary.LittleEndian.Uint32(b[shardHead-4:]))
	}
	f.version(4)
	d.Data, d.Parity, d.Index = int(f.u8()), int(f.u8()), int(f.u8())
	f.reserved(1)
	d.Store = block.UUID(f.take(16)).String()
	d.Segment, d.Generation, d.FooterCRC, d.Bytes = f.u64(), f.u32(), f.u32(), f.u64()
	f.reserved(shardHead - 4 - 56)
	f.take(4)
	f.rule(d.Data >= 1 && d.Parity >= 1 && d.Parity <= 8 && d.Data+d.Parity <= 31 && d.Index < d.Data+d.Parity, 12, "a shape of at most 31 shards, 8 of them parity", "%d+%d, shard %d", d.Data, d.Parity, d.Index)
	f.rule(d.Bytes >= 1 && d.Bytes <= segMaxSize, 48, "a segment of 1 B to 64 MiB", "%d B", d.Bytes)
	return f.end()
}

// columns checks pages and columns, as far as the file goes.
func (d *ShardDump) columns(b []byte) {
	all := (int(d.Bytes) + shardColumn - 1) / shardColumn
	d.Columns = (all + d.Data - 1) / d.Data
	pages := (d.Columns + shardSums - 1) / shardSums
	first := shardHead * (1 + pages)
	sums := make([][]byte, pages) // nil: damaged
	for i := range sums {
		at := shardHead * (1 + i)
		if at+shardHead <= len(b) && binary.LittleEndian.Uint32(b[at+shardHead-4:]) == crc(b[at:at+shardHead-4]) {
			sums[i] = b[at : at+shardHead]
		} else {
			d.DamagedPages = append(d.DamagedPages, i)
		}
	}
	for i := range d.Columns {
		at, page := first+i*shardColumn, sums[i/shardSums]
		if page == nil || at+shardColumn > len(b) || binary.LittleEndian.Uint32(page[4*(i%shardSums):]) != crc(b[at:at+shardColumn]) {
			d.DamagedColumns = append(d.DamagedColumns, i)
		}
	}
}

// WriteText writes a few lines for the shard.
func (d *ShardDump) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "shard %s, %d B", d.File, d.Size)
	if d.Error != "" {
		fmt.Fprintf(&b, ": %s\n", d.Error)
	} else {
		kind := "data"
		if d.Index >= d.Data {
			kind = "parity"
		}
		fmt.Fprintf(&b, ": %s shard %d of %d+%d of segment %d generation %d, %d B, footer %08x, store %s\n  %d columns of 4 KiB", kind, d.Index, d.Data, d.Parity, d.Segment, d.Generation, d.Bytes, d.FooterCRC, d.Store, d.Columns)
		if len(d.DamagedPages)+len(d.DamagedColumns) == 0 {
			b.WriteString(", all whole")
		}
		b.WriteByte('\n')
		if len(d.DamagedPages) > 0 {
			fmt.Fprintf(&b, "  damaged pages of checksums: %v\n", d.DamagedPages)
		}
		if len(d.DamagedColumns) > 0 {
			fmt.Fprintf(&b, "  damaged columns: %v\n", d.DamagedColumns)
		}
		if d.OtherName != "" {
			fmt.Fprintf(&b, "  by its head its name is %s\n", d.OtherName)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
