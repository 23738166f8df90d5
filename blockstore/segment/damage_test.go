package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// Every byte of a sealed segment is covered: no single flip and no lost tail goes unnoticed.
func TestSegmentDamageIsDetected(t *testing.T) {
	f, footer := sealed(t, 2)
	good := bytes.Clone(f.b)
	check := func(what string, at int) {
		t.Helper()
		if _, err := segment.Check(f, f.size()); !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("%s at %d of %d: %v", what, at, len(good), err)
		}
	}
	for at := 0; at < len(good); at++ {
		if at == 200 {
			at = segment.HeaderSize - 8 // what lies between is zero, reserved and covered alike
		}
		f.b[at] ^= 0x10
		check("flip", at)
		f.b[at] = good[at]
	}
	for n := range len(good) {
		if n%97 != 0 && n < int(footer.DirOff) {
			continue
		}
		f.b = good[:n]
		check("cut", n)
	}
	f.b = append(bytes.Clone(good), 0)
	check("a byte more", len(good))
}

func TestPaddingIsChecked(t *testing.T) {
	f, w, offs, _ := build(t, 3)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	footer, err := segment.Reseal(f, f.size(), testMeta, offs[1], 1)
	if err != nil {
		t.Fatal(err)
	}
	at := footer.DirOff + footer.DirLen
	if int(at)+256 >= len(f.b) {
		t.Fatal("no padding to test")
	}
	f.b[at+3] = 1
	if _, err := segment.Check(f, f.size()); !errors.Is(err, block.ErrCorrupt) {
		t.Error(err)
	}
}

// Fields that are wrong under a right checksum: a writer's bug, or an attacker. Offsets are those of docs/format/segment.md.
func TestHostileFooters(t *testing.T) {
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"version":         {func(b []byte) { b[8] = 2 }, block.ErrVersion},
		"class 0":         {func(b []byte) { b[12] = 0 }, block.ErrCorrupt},
		"class 7":         {func(b []byte) { b[12] = 7 }, block.ErrCorrupt},
		"unknown codec":   {func(b []byte) { b[13] = 8 }, block.ErrCorrupt},
		"reserved":        {func(b []byte) { b[15] = 1 }, block.ErrCorrupt},
		"frames":          {func(b []byte) { le.PutUint32(b[44:], 1<<32-1) }, block.ErrCorrupt},
		"chunks":          {func(b []byte) { le.PutUint32(b[48:], 1<<32-1) }, block.ErrCorrupt},
		"more and fewer":  {func(b []byte) { le.PutUint32(b[44:], 4); le.PutUint32(b[48:], 2) }, block.ErrCorrupt},
		"directory low":   {func(b []byte) { le.PutUint32(b[52:], 4095) }, block.ErrCorrupt},
		"directory high":  {func(b []byte) { le.PutUint32(b[52:], 1<<32-1) }, block.ErrCorrupt},
		"directory long":  {func(b []byte) { le.PutUint32(b[56:], 1<<32-1) }, block.ErrCorrupt},
		"raw bytes":       {func(b []byte) { le.PutUint64(b[64:], 1<<40) }, block.ErrCorrupt},
		"stored bytes":    {func(b []byte) { le.PutUint64(b[72:], 1<<40) }, block.ErrCorrupt},
		"root hash":       {func(b []byte) { b[92] = 1 }, block.ErrCorrupt},
		"parity":          {func(b []byte) { b[124] = 1 }, block.ErrCorrupt},
		"shard hash":      {func(b []byte) { b[132] = 1 }, block.ErrCorrupt},
		"end of reserved": {func(b []byte) { b[251] = 1 }, block.ErrCorrupt},
	} {
		f, _ := sealed(t, 2)
		b := f.b[len(f.b)-256:]
		c.change(b)
		resum(b, 0, 252)
		if _, err := segment.ReadFooter(f, f.size()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileHeaders(t *testing.T) {
	for name, c := range map[string]struct {
		change func(b []byte)
		want   error
	}{
		"version":  {func(b []byte) { b[8] = 2 }, block.ErrVersion},
		"class":    {func(b []byte) { b[12] = 9 }, block.ErrCorrupt},
		"reserved": {func(b []byte) { b[13] = 1 }, block.ErrCorrupt},
		"end":      {func(b []byte) { b[4091] = 1 }, block.ErrCorrupt},
	} {
		f, _ := sealed(t, 1)
		c.change(f.b)
		resum(f.b, 0, 4092)
		if _, err := segment.ReadHeader(f, f.size()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileDirectories(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func(d []byte){
		"offset":        func(d []byte) { d[0]++ },
		"stored length": func(d []byte) { d[4]++ },
		"length 1":      func(d []byte) { le.PutUint32(d[4:], 1) },
		"raw length":    func(d []byte) { d[8]++ },
		"no chunks":     func(d []byte) { le.PutUint32(d[12:], 0) },
		"2^32-1 chunks": func(d []byte) { le.PutUint32(d[12:], 1<<32-1) },
		"chunk length":  func(d []byte) { le.PutUint32(d[16+24:], 1<<32-1) },
		"empty chunk":   func(d []byte) { le.PutUint32(d[16+24:], 0) },
		"reserved":      func(d []byte) { d[16+28] = 1 },
	} {
		f, footer := sealed(t, 2)
		d := f.b[footer.DirOff:][:footer.DirLen]
		change(d)
		b := f.b[len(f.b)-256:]
		le.PutUint32(b[60:], crc32.Checksum(d, castagnoli))
		resum(b, 0, 252)
		footer, err := segment.ReadFooter(f, f.size())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := segment.ReadDirectory(f, &footer); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A directory that agrees with itself, but not with the frames, is for Check to find.
func TestDirectoryAndFramesDisagree(t *testing.T) {
	le := binary.LittleEndian
	for name, off := range map[string]int{"chunk id": 16, "hash": 16 + 8} {
		f, footer := sealed(t, 2)
		d := f.b[footer.DirOff:][:footer.DirLen]
		d[off]++
		b := f.b[len(f.b)-256:]
		le.PutUint32(b[60:], crc32.Checksum(d, castagnoli))
		resum(b, 0, 252)
		if _, err := segment.Check(f, f.size()); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
