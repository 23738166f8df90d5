package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	sectorSize    = 512
	maxPartitions = 128
)

// Partition is a part of the disk, or all of it.
type Partition struct {
	Name   string `json:"name"` // p1, p2 and so on, or disk
	Off    uint64 `json:"offset"`
	Len    uint64 `json:"length"`
	Type   string `json:"type,omitempty"`  // of the file system, as blkid calls it
	Label  string `json:"label,omitempty"` // of the file system
	Path   string `json:"path,omitempty"`  // where it is mounted, if it is
	Reason string `json:"reason,omitempty"`
}

// options are those of the file systems that are mounted, besides ro,nosuid,nodev,noexec: none may write, so no journal is replayed.
var options = map[string]string{
	"ext2": "", "ext3": "noload", "ext4": "noload", "xfs": "norecovery,nouuid", "btrfs": "rescue=nologreplay", "vfat": "", "exfat": "", "ntfs": "", "iso9660": "", "udf": "", "squashfs": "", "erofs": "",
}

// drivers are the kernel's names of file systems where blkid has others.
var drivers = map[string]string{"ntfs": "ntfs3"}

// partitions finds what is on a disk of that many bytes.
func partitions(ctx context.Context, file string, size uint64) ([]Partition, error) {
	whole := Partition{Name: "disk", Len: size}
	tags, err := probe(ctx, file, whole)
	if err != nil {
		return nil, err
	}
	if tags["PTTYPE"] == "" || tags["TYPE"] != "" { // a boot sector may look like a table
		whole.Type, whole.Label = tags["TYPE"], tags["LABEL"]
		return []Partition{whole}, nil
	}
	text, err := run(ctx, "sfdisk", "--json", file)
	if err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	parts, err := parseTable([]byte(text), file, size)
	if err != nil {
		return nil, err
	}
	for i := range parts {
		p := &parts[i]
		if p.Reason != "" {
			continue
		}
		tags, err := probe(ctx, file, *p)
		if err != nil {
			p.Reason = err.Error()
			continue
		}
		p.Type, p.Label = tags["TYPE"], tags["LABEL"]
	}
	return parts, nil
}

// table is what sfdisk --json prints.
type table struct {
	PartitionTable struct {
		Unit       string
		SectorSize uint64
		Partitions []struct {
			Node        string
			Start, Size uint64
		}
	}
}

// parseTable returns the partitions that sfdisk has found on a disk of that many bytes.
func parseTable(text []byte, file string, size uint64) (parts []Partition, err error) {
	var t table
	if err := json.Unmarshal(text, &t); err != nil {
		return nil, &block.CorruptError{Source: "partition table", Want: "JSON of sfdisk", Got: err.Error()}
	}
	sector := t.PartitionTable.SectorSize
	if sector == 0 {
		sector = sectorSize
	}
	if t.PartitionTable.Unit != "sectors" || sector > 1<<16 {
		return nil, &block.CorruptError{Source: "partition table", Want: "sectors", Got: fmt.Sprintf("%q of %d B", t.PartitionTable.Unit, sector)}
	}
	for _, p := range t.PartitionTable.Partitions {
		number, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimPrefix(p.Node, file), "p"), 10, 16)
		if err != nil || len(parts) >= maxPartitions {
			continue
		}
		part := Partition{Name: fmt.Sprintf("p%d", number)}
		if p.Start > size/sector || p.Size > size/sector-p.Start {
			part.Reason = "it ends behind the end of the disk"
		} else {
			part.Off, part.Len = p.Start*sector, p.Size*sector
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// blkidNothing is the exit code of blkid when it has found nothing, or contradictions.
const (
	blkidNothing   = 2
	blkidAmbiguous = 8
)

// probe returns what blkid finds in a part of a file.
func probe(ctx context.Context, file string, p Partition) (map[string]string, error) {
	args := []string{"--probe", "--output", "export", "--offset", fmt.Sprint(p.Off), "--size", fmt.Sprint(p.Len), file}
	text, err := run(ctx, "blkid", args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		switch exit.ExitCode() {
		case blkidNothing:
			return nil, nil
		case blkidAmbiguous:
			return nil, errors.New("it looks like several file systems at once")
		}
	}
	if err != nil {
		return nil, err
	}
	return parseTags(text), nil
}

// parseTags reads lines of NAME=VALUE.
func parseTags(text string) map[string]string {
	tags := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			tags[name] = value
		}
	}
	return tags
}
