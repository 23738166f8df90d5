package extentmap

import (
	"encoding/binary"
	"fmt"
)

// These constants are part of the disk format (docs/format/references.md) and should not be changed.
const (
	deadMagic   = "HvDl"
	deadVersion = 1
	rowHeader   = 16
	rowCRC      = 12
	deadSize    = 16

	// DeadPerRow is the most entries that a deadlist row may have.
	DeadPerRow = 256
)

// EncodeDead returns the value of a deadlist row of 1 to DeadPerRow entries.
func EncodeDead(dead []Dead) []byte {
	data := make([]byte, rowHeader, rowHeader+len(dead)*deadSize)
	copy(data, deadMagic)
	binary.LittleEndian.PutUint16(data[4:], deadVersion)
	binary.LittleEndian.PutUint16(data[6:], uint16(len(dead)))
	for _, d := range dead {
		data = binary.LittleEndian.AppendUint64(data, uint64(d.Kind)|uint64(d.Level)<<8|d.Region<<16)
		data = binary.LittleEndian.AppendUint64(data, d.ID)
	}
	binary.LittleEndian.PutUint32(data[rowCRC:], checksum(data, rowCRC))
	return data
}

// DecodeDead verifies the value of the row under k and returns its entries. Damage is a *block.CorruptError.
func DecodeDead(k DeadKey, data []byte) ([]Dead, error) {
	c := checker{kind: fmt.Sprintf("deadlist of volume %d snapshot %d birth %d row", k.Volume, k.Snapshot, k.Birth), id: k.N, data: data}
	if err := c.row(deadMagic, deadVersion); err != nil {
		return nil, err
	}
	count := int(binary.LittleEndian.Uint16(data[6:]))
	if count == 0 || count > DeadPerRow || len(data) != rowHeader+count*deadSize {
		return nil, c.fail(6, "1 to 256 entries that fill the row", fmt.Sprintf("%d in %d B", count, len(data)))
	}
	dead := make([]Dead, count)
	for i := range dead {
		at := rowHeader + i*deadSize
		word := binary.LittleEndian.Uint64(data[at:])
		d := Dead{Kind: DeadKind(word), Level: uint8(word >> 8), Region: word >> 16, ID: binary.LittleEndian.Uint64(data[at+8:])}
		if problem := d.problem(); problem != "" {
			return nil, c.fail(at, "a valid entry", problem)
		}
		dead[i] = d
	}
	return dead, nil
}

func (d Dead) problem() string {
	switch {
	case d.Kind < DeadPage || d.Kind > DeadSubtree:
		return fmt.Sprintf("kind %d", d.Kind)
	case d.ID == 0:
		return "id 0"
	case d.Kind != DeadSubtree && (d.Level != 0 || d.Region != 0):
		return "a place of something that has none"
	case d.Level > MaxLevel || d.Region >= regionCount || d.Region%span(d.Level) != 0:
		return fmt.Sprintf("level %d at region %d", d.Level, d.Region)
	}
	return ""
}
