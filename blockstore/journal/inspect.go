package journal

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// FileInfo is what ReadFile found.
type FileInfo struct {
	Header  FileHeader
	Footer  *Footer // nil if the file is not sealed
	Records uint64  // that are whole
	End     int64   // offset of the first byte after them
	Chain   uint32  // at End
}

// ReadFile reads one log file for a tool, without opening the log or changing anything, and hands its records to visit. It uses the index
// of a sealed file, unless verify asks for every record and its payload to be read and compared with footer and index. An unsealed file is
// always read so; it may end anywhere.
func ReadFile(fsys vfs.FS, path string, keys *keyring.Ring, verify bool, visit func(*Replayed) error) (info FileInfo, err error) {
	file, err := fsys.Open(path)
	if err != nil {
		return info, fmt.Errorf("open log file: %w", err)
	}
	defer file.Close()
	f := &logFile{f: file, path: path}
	page := make([]byte, pageSize)
	if err := readZeroFilled(file, page, 0); err != nil {
		return info, fmt.Errorf("read header of %s: %w", path, err)
	}
	if f.header, f.seed, err = ParseFileHeader(page); err != nil {
		return info, fmt.Errorf("%s: %w", path, err)
	}
	info.Header = f.header
	if f.vault, err = openVault(keys, &f.header, page); err != nil {
		return info, inFile(f.header.ID, err)
	}
	ft, sealed, err := readFooter(f)
	if err != nil {
		return info, err
	}
	if sealed {
		info.Footer = &ft
	}
	if sealed && !verify {
		err = readByIndex(f, &ft, visit)
	} else {
		err = scan(f, new(reader), 0, visit)
	}
	info.Records, info.End, info.Chain = f.records, f.end, f.chain
	if err == nil && sealed && verify {
		err = compareSeal(f, &ft)
	}
	return info, err
}

// readByIndex replays a sealed file by its index.
func readByIndex(f *logFile, ft *Footer, visit func(*Replayed) error) error {
	index, ok, err := readIndex(f, ft, nil)
	if err == nil && !ok {
		err = inFile(f.header.ID, damaged("an index that matches its sum", ft.IndexOff))
	}
	if err != nil {
		return err
	}
	return replaySealed(f, ft, index, 0, new(entries), visit)
}

// compareSeal compares what a scan has found with footer and index.
func compareSeal(f *logFile, ft *Footer) error {
	if f.end != ft.DataEnd || f.records != ft.Records {
		return endTooEarly(f, ft.LastSeq)
	}
	index, ok, err := readIndex(f, ft, nil)
	if err != nil {
		return err
	}
	if !ok || string(index) != string(f.index) || f.chain != ft.FinalChain || f.minTime != ft.MinTime || f.maxTime != ft.MaxTime {
		return &block.CorruptError{
			Source: fileSource(f.header.ID), Offset: ft.IndexOff, Want: "footer and index of the records before them", Got: "others",
		}
	}
	return nil
}
