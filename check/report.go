package check

import (
	"fmt"
	"io"
	"strings"
)

// Severity says how bad a finding is.
type Severity string

const (
	// Error is a broken invariant: data that is lost or damaged, or would be served or freed wrongly.
	Error Severity = "error"
	// Warning is something that a healthy store does not have, but that harms nobody: leftovers that the next start removes, statistics that are off.
	Warning Severity = "warning"
)

// Finding is one thing that is not as the format says.
type Finding struct {
	Severity Severity `json:"severity"`
	Unit     string   `json:"unit"`             // a file relative to the data directory, or a row by its key, such as C|17
	Offset   int64    `json:"offset"`           // bytes into the unit
	Want     string   `json:"want"`             // what was expected
	Got      string   `json:"got"`              // what was found
	Places   []Place  `json:"places,omitempty"` // volumes that are affected, at most 16; snapshots and clones of these may be, too
}

// Place is a run of bytes of a volume.
type Place struct {
	Volume   uint64 `json:"volume"`             // id
	Name     string `json:"name,omitempty"`     // of the volume, if it still has one
	Snapshot string `json:"snapshot,omitempty"` // "" is the volume's head, or a state without a name
	Offset   uint64 `json:"offset"`             // bytes
	Length   uint64 `json:"length"`             // bytes
}

// maxPlaces bounds the places of one finding.
const maxPlaces = 16

// String is one line: severity, where, what was expected and what was found.
func (f *Finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s at %d: want %s, got %s", f.Severity, f.Unit, f.Offset, f.Want, f.Got)
	for i, p := range f.Places {
		if i == 0 {
			b.WriteString("; affects")
		}
		fmt.Fprintf(&b, " %s at %d+%d", p.owner(), p.Offset, p.Length)
	}
	if len(f.Places) > 0 {
		b.WriteString(" (and snapshots and clones that share this)")
	}
	return b.String()
}

func (p *Place) owner() string {
	name := p.Name
	if name == "" {
		name = fmt.Sprintf("volume %d", p.Volume)
	}
	if p.Snapshot != "" {
		name += "@" + p.Snapshot
	}
	return name
}

// Totals are what was read.
type Totals struct {
	Volumes         int    `json:"volumes"`
	Snapshots       int    `json:"snapshots"`
	Nodes           int    `json:"nodes"`
	LogFiles        int    `json:"logFiles"` // of the log; spare ones are not counted
	LogRecords      uint64 `json:"logRecords"`
	LogBytes        int64  `json:"logBytes"` // headers and payload of these records
	HistoryFiles    int    `json:"historyFiles"`
	HistoryBytes    uint64 `json:"historyBytes"`
	HistoryParity   uint64 `json:"historyParityBytes"` // of sidecars of these files
	Segments        int    `json:"segments"`
	SegmentBytes    int64  `json:"segmentBytes"`
	Frames          uint64 `json:"frames"`
	StoredChunks    uint64 `json:"storedChunks"` // in frames, dead ones too
	Chunks          uint64 `json:"chunks"`       // with a row
	ChunkBytes      uint64 `json:"chunkBytes"`   // raw, of these
	SharedBytes     uint64 `json:"sharedBytes"`  // raw, of those with more than one reference
	StaleHints      uint64 `json:"staleHints"`   // in the index, of chunks that are gone: what a crash leaves
	UnhintedChunks  uint64 `json:"unhintedChunks"`
	References      uint64 `json:"references"`
	Pages           uint64 `json:"pages"`
	RadixNodes      uint64 `json:"radixNodes"`
	Extents         uint64 `json:"extents"` // each insertion once
	DeadlistEntries uint64 `json:"deadlistEntries"`
	Jobs            int    `json:"jobs"`
	TouchedRows     uint64 `json:"touchedRows"` // of granules, for bitmaps
	Deltas          int    `json:"deltas"`      // since the newest full checkpoint
	CheckpointBytes uint64 `json:"checkpointBytes"`
}

// Report is what Run found.
type Report struct {
	Dir      string    `json:"dir"`
	StoreID  string    `json:"storeId,omitempty"`
	Clean    bool      `json:"closedClean"` // the store was closed in order
	Errors   int       `json:"errors"`
	Warnings int       `json:"warnings"`
	Findings []Finding `json:"findings"` // the first Options.MaxFindings of both
	Totals   Totals    `json:"totals"`
}

// OK reports whether there is no error. Warnings do not count.
func (r *Report) OK() bool { return r.Errors == 0 }

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	for i := range r.Findings {
		fmt.Fprintln(&b, r.Findings[i].String())
	}
	if hidden := r.Errors + r.Warnings - len(r.Findings); hidden > 0 {
		fmt.Fprintf(&b, "… and %d findings more\n", hidden)
	}
	t := &r.Totals
	fmt.Fprintf(&b, "store %s in %s, closed in order: %t\n", r.StoreID, r.Dir, r.Clean)
	fmt.Fprintf(&b, "  %d volumes, %d snapshots, %d nodes\n", t.Volumes, t.Snapshots, t.Nodes)
	fmt.Fprintf(&b, "  log: %d files, %d records, %d B\n", t.LogFiles, t.LogRecords, t.LogBytes)
	if t.HistoryFiles > 0 {
		fmt.Fprintf(&b, "  history: %d files, %d B, %d B of parity\n", t.HistoryFiles, t.HistoryBytes, t.HistoryParity)
	}
	fmt.Fprintf(&b, "  segments: %d, %d B, %d frames, %d chunks stored\n", t.Segments, t.SegmentBytes, t.Frames, t.StoredChunks)
	fmt.Fprintf(&b, "  chunks: %d of %d B, %d B of them shared, %d references\n", t.Chunks, t.ChunkBytes, t.SharedBytes, t.References)
	fmt.Fprintf(&b, "  maps: %d pages, %d nodes, %d extents; %d deadlist entries, %d jobs\n", t.Pages, t.RadixNodes, t.Extents, t.DeadlistEntries, t.Jobs)
	fmt.Fprintf(&b, "%d errors, %d warnings\n", r.Errors, r.Warnings)
	_, err := io.WriteString(w, b.String())
	return err
}
