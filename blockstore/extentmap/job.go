package extentmap

import (
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format (docs/format/references.md) and should not be changed.
const (
	jobMagic   = "HvJb"
	jobVersion = 1
	jobSize    = rowHeader + 6*8
)

// JobKind says what a job does. These constants are part of the disk format and should not be changed.
type JobKind uint8

const (
	// JobSubtree frees a detached subtree.
	JobSubtree JobKind = 1
	// JobSnapshot frees a deleted snapshot's deadlist.
	JobSnapshot JobKind = 2
	// JobVolume frees a deleted volume.
	JobVolume JobKind = 3
)

// Job is background work of a volume that survives a restart. Jobs of one volume are done in the order of their numbers.
type Job struct {
	Kind     JobKind
	Subtree  Subtree     // of JobSubtree; else zero
	Snapshot block.Epoch // the newest snapshot below the subtree, or the snapshot that is deleted; 0 if none
	Previous block.Epoch // births at or before it belong to an older snapshot or to the origin
	Cursor   Cursor      // how far the walk of the subtree got
}

// JobKey is the key of a job.
func JobKey(volume block.VolumeID, n uint64) []byte { return key(prefixJob, uint64(volume), n) }

// EncodeJob returns the value of a job's row.
func EncodeJob(j Job) []byte {
	data := make([]byte, rowHeader, jobSize)
	copy(data, jobMagic)
	binary.LittleEndian.PutUint16(data[4:], jobVersion)
	data[6], data[7] = byte(j.Kind), j.Subtree.Level
	for _, f := range []uint64{j.Subtree.ID, j.Subtree.Region, uint64(j.Subtree.Birth), uint64(j.Snapshot), uint64(j.Previous), uint64(j.Cursor)} {
		data = binary.LittleEndian.AppendUint64(data, f)
	}
	binary.LittleEndian.PutUint32(data[rowCRC:], checksum(data, rowCRC))
	return data
}

// DecodeJob verifies the value of the row of job n of a volume. Damage is a *block.CorruptError.
func DecodeJob(volume block.VolumeID, n uint64, data []byte) (Job, error) {
	c := checker{kind: fmt.Sprintf("volume %d job", volume), id: n, data: data}
	if err := c.row(jobMagic, jobVersion); err != nil {
		return Job{}, err
	}
	if len(data) != jobSize {
		return Job{}, c.fail(0, fmt.Sprintf("%d B", jobSize), fmt.Sprintf("%d B", len(data)))
	}
	f := func(i int) uint64 { return binary.LittleEndian.Uint64(data[rowHeader+8*i:]) }
	j := Job{
		Kind:     JobKind(data[6]),
		Subtree:  Subtree{ID: f(0), Level: data[7], Region: f(1), Birth: block.Epoch(f(2))},
		Snapshot: block.Epoch(f(3)),
		Previous: block.Epoch(f(4)),
		Cursor:   Cursor(f(5)),
	}
	s := j.Subtree
	switch {
	case j.Kind < JobSubtree || j.Kind > JobVolume:
		return Job{}, c.fail(6, "a kind of job", fmt.Sprint(j.Kind))
	case j.Kind != JobSubtree && (s != Subtree{} || j.Cursor != 0):
		return Job{}, c.fail(rowHeader, "no subtree", fmt.Sprint("subtree ", s.ID))
	case j.Kind == JobSubtree && (s.ID == 0 || s.Birth == 0 || s.Level > MaxLevel || s.Region >= regionCount || s.Region%s.Span() != 0):
		return Job{}, c.fail(rowHeader, "a subtree", fmt.Sprintf("%+v", s))
	}
	return j, nil
}

// ScanJobs calls visit with the jobs of a volume, in order, or of all volumes if volume is 0, until visit returns false or an error.
func ScanJobs(r Ranger, volume block.VolumeID, visit func(volume block.VolumeID, n uint64, j Job) (more bool, err error)) error {
	lower, upper := []byte{prefixJob}, []byte{prefixJob + 1}
	if volume != 0 {
		lower, upper = JobKey(volume, 0), append(JobKey(volume, ^uint64(0)), 0)
	}
	return scan(r, lower, upper, func(key, value []byte) (bool, error) {
		if len(key) != 17 {
			return false, &block.CorruptError{Source: "jobs", Want: "a key of 17 B", Got: fmt.Sprintf("%x", key)}
		}
		v, n := block.VolumeID(binary.BigEndian.Uint64(key[1:])), binary.BigEndian.Uint64(key[9:])
		j, err := DecodeJob(v, n, value)
		if err != nil {
			return false, err
		}
		return visit(v, n, j)
	})
}
