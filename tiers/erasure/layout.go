package erasure

import "github.com/hyper-nixos/hyper-nixos/block"

// These constants are part of the disk format and should not be changed.
const (
	// ColumnSize is the unit that is checked, lost and mended, in bytes.
	ColumnSize = 4 << 10

	groupStripes = 32       // stripes of a group; the last one may have fewer
	maxSize      = 64 << 20 // bytes of a segment
)

// layout says where the columns of a segment of some size and their parity are.
type layout struct {
	k, m    int
	size    int64 // of the segment, bytes
	columns int   // of the segment; the last one may be short
	stripes int
	groups  int
}

func newLayout(s Shape, size int64) layout {
	l := layout{k: s.Data, m: s.Parity, size: size}
	l.columns = int((size + ColumnSize - 1) / ColumnSize)
	l.stripes = (l.columns + l.k - 1) / l.k
	l.groups = (l.stripes + groupStripes - 1) / groupStripes
	return l
}

// SidecarSize is the length of the sidecar of a segment of size bytes.
func SidecarSize(s Shape, size int64) int64 {
	if s.None() {
		return 0
	}
	l := newLayout(s, size)
	return l.groupOff(l.groups)
}

// stripesOf is how many stripes group g has.
func (l *layout) stripesOf(g int) int { return min(groupStripes, l.stripes-g*groupStripes) }

// groupOff is where group g begins in the sidecar; that of the one behind the last is the sidecar's length.
func (l *layout) groupOff(g int) int64 {
	return int64(g)*2*headSize + int64(min(g*groupStripes, l.stripes))*int64(l.m)*ColumnSize
}

// headOffs are where the two copies of the head of group g lie.
func (l *layout) headOffs(g int) [2]int64 {
	return [2]int64{l.groupOff(g), l.groupOff(g+1) - headSize}
}

// parityOff is where parity column j of stripe s lies in the sidecar.
func (l *layout) parityOff(s, j int) int64 {
	g := s / groupStripes
	return l.groupOff(g) + headSize + int64(j*l.stripesOf(g)+s%groupStripes)*ColumnSize
}

// column is the number of data column i of stripe s; from columns on there is none, and it counts as zeroes.
func (l *layout) column(s, i int) int { return i*l.stripes + s }

// columnLen is how many bytes of a column are in the file; what follows counts as zeroes.
func (l *layout) columnLen(c int) int {
	return int(max(0, min(ColumnSize, l.size-int64(c)*ColumnSize)))
}

// Identity names the bytes that a sidecar belongs to. The checksum is that of the segment's footer, which holds those of all that lies before it.
type Identity struct {
	StoreID    block.UUID
	Segment    block.SegmentID
	Generation uint32
	SizeBytes  int64
	FooterCRC  uint32 // the last four bytes of the segment
}
