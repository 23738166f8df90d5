package check

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// Options bound and watch a check. The zero value works.
type Options struct {
	// MaxFindings is how many findings are kept; the others are counted. Default 1,000.
	MaxFindings int
	// CacheBytes is Pebble's block cache. Default 64 MiB.
	CacheBytes int64
	// Disks are the directories of further disks, of a store that has some.
	Disks []string
	// Unwrap opens the keys of a store that is encrypted; nil checks what is sealed by its checksums alone. A key that does not fit is ErrWrongKey.
	Unwrap Unwrap
	// Progress, if set, is told what begins: a step, or a segment or log file.
	Progress func(step string)
}

// run is one check under way.
type run struct {
	ctx  context.Context // of the one call of Run
	dir  string
	opts Options
	rep  *Report

	super  *super
	domain []byte // key; nil when it is missing or wrong
	ring   *ring  // keys of an encrypted store; nil without Options.Unwrap
	meta   *meta
	field  *galois // made when the first sidecar is met

	tree     forest
	rowSum   uint64 // over the rows of volumes, nodes and segments
	lost     uint64 // chunks in no segment
	logEnd   uint64 // sequence number of the last record
	segments map[uint64]*segmentState
	stored   idSet          // chunks whose row was found in its frame
	bad      map[uint64]int // damaged or missing chunk → its finding, or notKept

	refs       counts // insertions by chunk, as the maps have them
	counted    idSet  // chunks with a row of their count
	owned      idSet  // pages and nodes that were reached
	brokenMaps map[string]bool
	lastRadix  [maxLevel + 1]*radix

	parts     []foundPart // of checkpoints
	assembled struct {    // the segment of checkpoints that was put together last
		segment uint64
		b       []byte
	}
}

// Run checks the store in dir. The error is about the check itself: a directory that is no store, a store that is in use (block.ErrLocked), a context that ended, a file
// that the operating system does not let read. Damage of any kind is in the report.
func Run(ctx context.Context, dir string, opts Options) (Report, error) {
	if opts.MaxFindings == 0 {
		opts.MaxFindings = 1000
	}
	if opts.CacheBytes == 0 {
		opts.CacheBytes = 64 << 20
	}
	opts.Disks = slices.Clone(opts.Disks)
	for i, d := range opts.Disks {
		var err error
		if opts.Disks[i], err = filepath.Abs(d); err != nil {
			return Report{}, fmt.Errorf("check store %s: %w", dir, err)
		}
	}
	rep := Report{Dir: dir, Findings: []Finding{}}
	r := &run{ctx: ctx, dir: dir, opts: opts, rep: &rep, segments: map[uint64]*segmentState{}, bad: map[uint64]int{}, brokenMaps: map[string]bool{}}
	if err := r.all(); err != nil {
		return rep, fmt.Errorf("check store %s: %w", dir, err)
	}
	return rep, nil
}

func (r *run) all() error {
	unlock, err := lockShared(r.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.checkSuper(); err != nil || r.super == nil {
		return err
	}
	if r.meta, err = openMeta(r.dir, r.opts.CacheBytes); err != nil {
		r.fail("meta", 0, "the metadata of this store", err.Error())
		return nil
	}
	defer r.meta.close()
	for _, step := range []struct {
		name string
		f    func() error
	}{
		{"metadata", r.checkRows}, {"tree", r.checkTree}, {"log", r.checkLog}, {"segments", r.checkSegments}, {"chunks", r.checkChunks},
		{"maps", r.checkMaps}, {"bitmaps", r.checkTouched}, {"deadlists", r.checkInheritance}, {"sizes of maps", r.checkMapped}, {"references", r.checkReferences}, {"counters", r.checkCounters},
		{"checkpoints", r.checkCheckpoints}, {"scrub", r.checkScrub}, {"history", r.checkHistory}, {"garbage collection", r.checkGC},
	} {
		if err := r.progress(step.name); err != nil {
			return err
		}
		err := step.f()
		if pebble.IsCorruptionError(err) {
			r.fail("meta", 0, "metadata files that pass their checksums, needed for: "+step.name, err.Error())
		} else if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

func (r *run) progress(step string) error {
	if r.opts.Progress != nil {
		r.opts.Progress(step)
	}
	return r.ctx.Err()
}

// notKept is the number of a finding that was only counted.
const notKept = -1

// fail records an error and returns the number of its finding, or notKept.
func (r *run) fail(unit string, off int64, want, got string) int {
	return r.note(Finding{Severity: Error, Unit: unit, Offset: off, Want: want, Got: got})
}

func (r *run) warn(unit string, off int64, want, got string) int {
	return r.note(Finding{Severity: Warning, Unit: unit, Offset: off, Want: want, Got: got})
}

func (r *run) note(f Finding) int {
	if f.Severity == Error {
		r.rep.Errors++
	} else {
		r.rep.Warnings++
	}
	if len(r.rep.Findings) >= r.opts.MaxFindings {
		return notKept
	}
	r.rep.Findings = append(r.rep.Findings, f)
	return len(r.rep.Findings) - 1
}

// noteErr records the error of a decoder.
func (r *run) noteErr(unit string, err error) int {
	f := asFault(err)
	return r.fail(unit, f.off, f.want, f.got)
}

// expect records an error unless ok.
func (r *run) expect(ok bool, unit string, off int64, want string, got any) bool {
	if !ok {
		r.fail(unit, off, want, fmt.Sprint(got))
	}
	return ok
}

// addPlace adds a volume's range to a finding.
func (r *run) addPlace(finding int, p Place) {
	if finding < 0 || len(r.rep.Findings[finding].Places) >= maxPlaces {
		return
	}
	f := &r.rep.Findings[finding]
	f.Places = append(f.Places, p)
}
