package extentmap

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format (docs/format/page.md) and should not be changed.
const (
	nodeMagic   = "HvNd"
	nodeVersion = 1
	bitmapSize  = Fanout / 8
	childrenAt  = headerSize + bitmapSize
	childSize   = 16
)

// Node is a verified radix node in its encoded form: a bitmap of the children that exist, then those children. It is immutable.
type Node struct{ data []byte }

// ID returns the node's id.
func (n Node) ID() uint64 { return binary.LittleEndian.Uint64(n.data[8:]) }

// Birth returns the epoch of the layer that wrote the node.
func (n Node) Birth() block.Epoch { return block.Epoch(binary.LittleEndian.Uint64(n.data[16:])) }

// Region returns the first region that the node covers.
func (n Node) Region() uint64 { return binary.LittleEndian.Uint64(n.data[24:]) }

// Level returns the node's height, at least 1; children of level 0 are pages.
func (n Node) Level() uint8 { return n.data[6] }

// word returns the presence bits of children 64w to 64w+63.
func (n Node) word(w int) uint64 { return binary.LittleEndian.Uint64(n.data[headerSize+8*w:]) }

// Child returns child i, with id 0 if it is a hole.
func (n Node) Child(i int) Subtree { return childAt(n.Level(), n.Region(), i, n.child(i)) }

// child returns child i as it is stored, with id 0 if it is a hole.
func (n Node) child(i int) ref {
	w, bit := i>>6, uint64(1)<<(i&63)
	if n.word(w)&bit == 0 {
		return ref{}
	}
	rank := bits.OnesCount64(n.word(w) & (bit - 1))
	for k := range w {
		rank += bits.OnesCount64(n.word(k))
	}
	return n.ranked(rank)
}

// ranked returns the child that is number r of those that exist.
func (n Node) ranked(r int) ref {
	b := n.data[childrenAt+r*childSize:]
	return ref{id: binary.LittleEndian.Uint64(b), birth: block.Epoch(binary.LittleEndian.Uint64(b[8:]))}
}

// next returns the first child that exists at index i or later, or Fanout.
func (n Node) next(i int) int {
	for ; i < Fanout; i = i&^63 + 64 {
		if rest := n.word(i>>6) >> (i & 63); rest != 0 {
			return i + bits.TrailingZeros64(rest)
		}
	}
	return Fanout
}

// DecodeNode verifies the bytes of the node that s names, and returns them as a Node, which keeps data. Damage is a *block.CorruptError.
func DecodeNode(s Subtree, data []byte) (Node, error) {
	c := checker{kind: "radix node", id: s.ID, data: data}
	if err := c.header(nodeMagic, nodeVersion, childrenAt); err != nil {
		return Node{}, err
	}
	n := Node{data}
	count := int(binary.LittleEndian.Uint16(data[32:]))
	set := 0
	for w := range Fanout / 64 {
		set += bits.OnesCount64(n.word(w))
	}
	switch {
	case n.ID() != s.ID:
		return Node{}, c.fail(8, fmt.Sprint("id ", s.ID), fmt.Sprint("id ", n.ID()))
	case n.Level() != s.Level || n.Level() == 0 || n.Level() > MaxLevel:
		return Node{}, c.fail(6, fmt.Sprint("level ", s.Level), fmt.Sprint("level ", n.Level()))
	case n.Birth() != s.Birth || n.Birth() == 0:
		return Node{}, c.fail(16, fmt.Sprint("birth ", s.Birth), fmt.Sprint("birth ", n.Birth()))
	case n.Region() != s.Region:
		return Node{}, c.fail(24, fmt.Sprint("region ", s.Region), fmt.Sprint("region ", n.Region()))
	case data[7] != 0 || binary.LittleEndian.Uint64(data[34:]) != 0 || binary.LittleEndian.Uint16(data[42:]) != 0:
		return Node{}, c.fail(7, "reserved fields of zero", "others")
	case count == 0 || count != set || len(data) != childrenAt+count*childSize:
		return Node{}, c.fail(32, fmt.Sprintf("%d children", set), fmt.Sprintf("%d in %d B", count, len(data)))
	}
	for r := range count {
		if k := n.ranked(r); k.id == 0 || k.birth == 0 || k.birth > n.Birth() {
			at := childrenAt + r*childSize
			return Node{}, c.fail(at, fmt.Sprint("a child with a birth from 1 to ", n.Birth()), fmt.Sprintf("child %d, birth %d", k.id, k.birth))
		}
	}
	return n, nil
}

// EncodeNode returns the bytes of the node that s names; child gives its children, with id 0 for holes.
func EncodeNode(s Subtree, child func(i int) (id uint64, birth block.Epoch)) []byte {
	data := make([]byte, childrenAt, childrenAt+Fanout*childSize)
	copy(data, nodeMagic)
	binary.LittleEndian.PutUint16(data[4:], nodeVersion)
	data[6] = s.Level
	binary.LittleEndian.PutUint64(data[8:], s.ID)
	binary.LittleEndian.PutUint64(data[16:], uint64(s.Birth))
	binary.LittleEndian.PutUint64(data[24:], s.Region)
	count := uint16(0)
	for i := range Fanout {
		id, birth := child(i)
		if id == 0 {
			continue
		}
		count++
		data[headerSize+i/8] |= 1 << (i % 8)
		data = binary.LittleEndian.AppendUint64(data, id)
		data = binary.LittleEndian.AppendUint64(data, uint64(birth))
	}
	binary.LittleEndian.PutUint16(data[32:], count)
	binary.LittleEndian.PutUint32(data[crcOffset:], checksum(data, crcOffset))
	return data
}
