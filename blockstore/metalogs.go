package blockstore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// metaLogs remembers what Pebble needs beside its newest log: the logs before that one, and its manifest. Pebble replays the logs that it finds and as much of the manifest as
// it can read: of a log that is missing, empty or cut at the end of a record, and of a manifest that is shorter than it was, it takes the rest for never written, and goes on
// with the next. So names, lengths and sums stand in a file that is durable before a log is begun and before one is let go, and a start misses everything that somebody took
// away.
type metaLogs struct {
	fs   vfs.FS
	dir  string // of the file and of Pebble's folder
	path string

	mu       sync.Mutex
	full     []metaFile     // logs that a newer one has followed, or that were there at the start
	newest   *metaFileState // the log that is being written
	manifest *metaFileState // that its marker names durably; nil before the first
	next     *metaFileState // the manifest that is being made
	marked   bool           // the marker of next was made, but perhaps not durably
	problem  error          // what is wrong with what the earlier run left
	missing  bool           // the file is not there

	reuse sync.Mutex // no log gets another name, or goes, while it is cut
}

// metaLogsFile is that file, in the data directory, and metaLogsMagic what its first line begins with. A file without it, of an earlier program, has names alone.
const (
	metaLogsFile  = "meta.logs"
	metaLogsMagic = "HNMETALOGS 2 "
)

// metaFile is a file of Pebble as it was at some time. It may have grown since.
type metaFile struct {
	name string
	size int64 // bytes; -1 if that is not known
	sum  uint32
}

func newMetaLogs(fs vfs.FS, dir string) *metaLogs {
	return &metaLogs{fs: fs, dir: dir, path: fs.PathJoin(dir, metaLogsFile)}
}

func isMetaLog(name string) bool      { return strings.HasSuffix(name, ".log") }
func isMetaManifest(name string) bool { return strings.HasPrefix(name, "MANIFEST-") }

// metaLogsMost bounds that file, in bytes.
const metaLogsMost = 1 << 20

// encode returns what the file says.
func encodeMetaLogs(files []metaFile) []byte {
	var b strings.Builder
	for _, f := range files {
		fmt.Fprintf(&b, "%s %d %08x\n", f.name, f.size, f.sum)
	}
	return fmt.Appendf(nil, "%s%08x\n%s", metaLogsMagic, crc32.Checksum([]byte(b.String()), castagnoli), b.String())
}

// decodeMetaLogs reads the file, of this version or of the one before.
func decodeMetaLogs(b []byte, path string) (files []metaFile, err error) {
	corrupt := func(want, got string) error { return &block.CorruptError{Source: path, Want: want, Got: got} }
	first, rest, _ := strings.Cut(string(b), "\n")
	sum, versioned := strings.CutPrefix(first, metaLogsMagic)
	if !versioned {
		rest = string(b)
	} else if got := fmt.Sprintf("%08x", crc32.Checksum([]byte(rest), castagnoli)); got != sum {
		return nil, corrupt("sum "+sum, got)
	}
	for line := range strings.Lines(rest) {
		f := metaFile{size: -1}
		line = strings.TrimSuffix(line, "\n")
		if f.name = line; versioned {
			if n, err := fmt.Sscanf(line, "%s %d %08x", &f.name, &f.size, &f.sum); err != nil || n != 3 {
				return nil, corrupt("a name, a length and a sum", fmt.Sprintf("%q", line))
			}
		}
		if !isMetaLog(f.name) && !isMetaManifest(f.name) || strings.ContainsAny(f.name, "/ ") {
			return nil, corrupt("names of logs", fmt.Sprintf("%q", line))
		}
		files = append(files, f)
	}
	return files, nil
}

// load takes over what an earlier run left: what it wrote of its files, and the logs that are there. problem is then what is wrong with them.
func (l *metaLogs) load() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full, l.newest, l.manifest, l.next, l.problem = nil, nil, nil, nil, nil
	b, err := readSmallFile(l.fs, l.path, metaLogsMost)
	if l.missing = errors.Is(err, os.ErrNotExist); err != nil && !l.missing {
		return fmt.Errorf("read the list of the metadata's logs: %w", err)
	}
	listed, err := decodeMetaLogs(b, l.path)
	if err != nil {
		return err
	}
	there, err := l.fs.List(l.fs.PathJoin(l.dir, metaDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, f := range listed {
		if isMetaManifest(f.name) {
			current := currentManifest(there)
			if current > f.name { // longer names have higher numbers only beyond 999,999 manifests
				continue // a newer one, which began with all that this one said
			}
			if current < f.name {
				l.complain(f.name, "the manifest of the metadata", fmt.Sprintf("an older one, %q", current))
				continue
			}
		} else {
			l.full = append(l.full, f)
		}
		if err := l.verify(f); err != nil {
			return err
		}
	}
	for _, name := range there {
		if !isMetaLog(name) || slices.ContainsFunc(l.full, func(f metaFile) bool { return f.name == name }) {
			continue
		}
		f, err := l.measure(name, -1)
		if err != nil {
			return err
		}
		if f.size > 0 {
			l.full = append(l.full, f)
		}
	}
	return nil
}

func (l *metaLogs) complain(name, want, got string) {
	if l.problem == nil {
		l.problem = &block.CorruptError{Source: l.fs.PathJoin(l.dir, metaDir, name), Want: want, Got: got}
	}
}

// currentManifest returns the name of the manifest that the newest marker names, "" if there is none.
func currentManifest(names []string) string {
	newest, current := "", ""
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, manifestMarker)
		if iteration, manifest, cut := strings.Cut(rest, "."); ok && cut && iteration > newest {
			newest, current = iteration, manifest
		}
	}
	return current
}

// manifestMarker is what the name of a marker begins with that names the manifest; the number of the marker and the name of the manifest follow.
const manifestMarker = "marker.manifest."

// verify complains of a file that has not got what it had.
func (l *metaLogs) verify(f metaFile) error {
	got, err := l.measure(f.name, f.size)
	switch {
	case err != nil:
		return err
	case got.size == 0 && f.size != 0:
		l.complain(f.name, "a log of the metadata", "nothing")
	case f.size >= 0 && (got.size != f.size || got.sum != f.sum):
		l.complain(f.name, fmt.Sprintf("%d B with sum %08x", f.size, f.sum), fmt.Sprintf("%d B with %08x", got.size, got.sum))
	}
	return nil
}

// measure reads the first size bytes of a file, or all of it if that is -1. A missing file is an empty one.
func (l *metaLogs) measure(name string, size int64) (metaFile, error) {
	f, err := l.fs.Open(l.fs.PathJoin(l.dir, metaDir, name))
	if errors.Is(err, os.ErrNotExist) {
		return metaFile{name: name}, nil
	}
	if err != nil {
		return metaFile{}, err
	}
	defer f.Close()
	sum := crc32.New(castagnoli)
	var from io.Reader = f
	if size >= 0 {
		from = io.LimitReader(f, size)
	}
	n, err := io.Copy(sum, from)
	return metaFile{name, n, sum.Sum32()}, err
}

// begin is told that Pebble begins a log: the one before it is full.
func (l *metaLogs) begin(f *metaFileState) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newest != nil {
		l.full = append(l.full, l.newest.written())
	}
	l.newest = f
	return l.write()
}

// end is told that Pebble lets a log go.
func (l *metaLogs) end(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.IndexFunc(l.full, func(f metaFile) bool { return f.name == name }); i >= 0 {
		l.full = slices.Delete(l.full, i, i+1)
		return l.write()
	}
	return nil
}

// newestName is the name of the log that is being written.
func (l *metaLogs) newestName() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newest == nil {
		return ""
	}
	return l.newest.name
}

// trim cuts the logs up to one of them, of which Pebble needs nothing any more, to nothing: it keeps some of them for reuse, each as long as a memtable. It may still give them new names, or remove them.
func (l *metaLogs) trim(upTo string) error {
	l.reuse.Lock()
	defer l.reuse.Unlock()
	l.mu.Lock()
	var old []string
	for _, f := range l.full {
		if isMetaLog(f.name) && !metaLogBefore(upTo, f.name) {
			old = append(old, f.name)
		}
	}
	l.mu.Unlock()
	for _, name := range old {
		if err := l.end(name); err != nil {
			return err
		}
		path := l.fs.PathJoin(l.dir, metaDir, name)
		if _, err := l.fs.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		f, err := l.fs.Create(path, vfs.WriteCategoryUnspecified)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return fmt.Errorf("cut a log that is kept for reuse: %w", err)
		}
	}
	return nil
}

// metaLogBefore reports whether a log is older than another one: their names are numbers of six digits, or of more.
func metaLogBefore(a, b string) bool { return len(a) < len(b) || len(a) == len(b) && a < b }

// beginManifest is told that Pebble makes a manifest, which counts when its marker does.
func (l *metaLogs) beginManifest(f *metaFileState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next, l.marked = f, false
}

// markManifest is told that the marker of a manifest is made, and dirSynced that it is durable.
func (l *metaLogs) markManifest(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marked = l.next != nil && strings.HasSuffix(name, "."+l.next.name)
}

func (l *metaLogs) dirSynced() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.marked {
		l.manifest, l.next, l.marked = l.next, nil, false
	}
}

// forget is told that there are new metadata, without logs of before.
func (l *metaLogs) forget() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full, l.newest, l.manifest, l.next = nil, nil, nil, nil
	return l.write()
}

func (l *metaLogs) write() error {
	files := slices.Clone(l.full)
	if l.manifest != nil {
		files = append(files, l.manifest.durable())
	}
	return writeFileAtomic(l.fs, l.dir, l.path, encodeMetaLogs(files))
}
