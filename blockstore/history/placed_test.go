package history

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// page makes what a page of a database may be: a header, half of it random, and half of it words.
func page(rng *rand.Rand) []byte {
	p := make([]byte, sectorSize)
	for i := range p {
		if p[i] = "the quick brown fox "[i%20]; i%64 < 32 {
			p[i] = byte(rng.Uint32())
		}
	}
	return p
}

// touch changes a page as a transaction does: its header, and a row somewhere.
func touch(rng *rand.Rand, p []byte) []byte {
	p = bytes.Clone(p)
	le.PutUint64(p, rng.Uint64())
	row := 8 + rng.IntN(sectorSize-48)
	for i := range 32 {
		p[row+i] = byte(rng.Uint32())
	}
	return p
}

// asVersion2 is what the payload of a stream would take in the order of its records, a frame of zstd for each 128 KiB, as version 2 had it, in bytes.
func asVersion2(t *testing.T, s *Set, st *Stream) (n int) {
	t.Helper()
	var pack packing
	defer pack.close()
	var frame, out []byte
	flush := func() {
		if len(frame) > 0 {
			out = pack.pack(out[:0], frame)
			n += min(len(out), len(frame))
			frame = frame[:0]
		}
	}
	must(t, st.Each(0, ^uint64(0), func(r *Record) error {
		if r.Kind != Write {
			return nil
		}
		p := make([]byte, r.Len)
		err := s.ReadAt(p, r.Pos, r.Sums)
		if len(frame)+len(p) > FrameRaw {
			flush()
		}
		frame = append(frame, p...)
		return err
	}))
	flush()
	return n
}

// Versions of pages take a sixth of what they take in the order of their records, and what is equal takes no room; each of them is what it was.
func TestPlacedVersions(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprint("encrypted=", encrypted), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(31, 31))
			var keys *keyring.Ring
			if encrypted {
				keys = testKeys(t, block.UUID{1})
			}
			s := openSet(t, vfs.NewCrashableMem(), keys)
			st, err := s.Create(testVolume)
			must(t, err)
			pages := make([][]byte, 100)
			for i := range pages {
				pages[i] = page(rng)
			}
			var all []wrote
			seq := uint64(1)
			put := func(r Record) {
				must(t, st.Append(&r))
				all = append(all, wrote{Record: r, data: r.Payload})
			}
			write := func(block int, p []byte) {
				seq++
				put(Record{Kind: Write, Seq: seq, Time: int64(seq), Off: uint64(block) * sectorSize, Len: sectorSize, Payload: p})
			}
			for range 60 {
				for range 20 {
					i := rng.IntN(len(pages))
					pages[i] = touch(rng, pages[i])
					write(i, pages[i])
				}
				put(Record{Kind: Barrier, Seq: seq, Time: int64(seq)})
			}
			for i, p := range pages { // a copy
				write(1000+i, p)
			}
			put(Record{Kind: Barrier, Seq: seq, Time: int64(seq)})
			must(t, st.Roll())
			_, _, err = st.Thin(&Thinning{Roots: []Root{{Seq: 1}, {Seq: seq + 1}}, Level: func(int64) Level { return Flushes }, Pace: func(int) error { return nil }})
			must(t, err)
			f := st.files[0]
			x, err := f.index()
			must(t, err)
			stored := 0
			for _, r := range x.frames {
				stored += int(r.stored)
			}
			was := asVersion2(t, s, st)
			t.Logf("%d B of payload: %d B as version 2 had it, %d B now; the file has %d B", f.raw, was, stored, f.end)
			if stored*6 > was {
				t.Errorf("%d B of payload are stored, in the order of records it were %d B", stored, was)
			}
			var want []wrote
			writes := 0
			for i, w := range all {
				if w.Kind == Write && superseded(all[i:]) {
					continue
				}
				if want = append(want, w); w.Kind == Write {
					writes++
				}
			}
			if int(f.raw) != (writes-len(pages))*sectorSize {
				t.Errorf("%d sectors are there, want %d, as the copy shares all of its", f.raw/sectorSize, writes-len(pages))
			}
			compare(t, s, st, want)
			must(t, s.Close())
		})
	}
}

// superseded reports whether the first write is followed by another one of its block before a flush.
func superseded(all []wrote) bool {
	for _, w := range all[1:] {
		if w.Kind == Barrier {
			return false
		}
		if w.Off == all[0].Off {
			return true
		}
	}
	return false
}

// placedStream is a stream with one file of version 3 of some frames.
func placedStream(t *testing.T, fs vfs.FS) (s *Set, st *Stream) {
	t.Helper()
	s = openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	rng := rand.New(rand.NewPCG(5, 31))
	seq := uint64(1)
	for range 150 {
		seq++
		must(t, st.Append(&Record{Kind: Write, Seq: seq, Time: int64(seq), Off: rng.Uint64N(30) * sectorSize, Len: sectorSize, Payload: page(rng)}))
		must(t, st.Append(&Record{Kind: Barrier, Seq: seq, Time: int64(seq)}))
	}
	must(t, st.Roll())
	_, _, err = st.Thin(&Thinning{Roots: []Root{{Seq: 1}, {Seq: seq + 1}}, Level: func(int64) Level { return Flushes }, Pace: func(int) error { return nil }})
	must(t, err)
	return s, st
}

// Damage of a frame is told of each write that needs it, and of no other; a file that is damaged stays as it is.
func TestPlacedDamaged(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s, st := placedStream(t, fs)
	f := st.files[0]
	x, err := f.index()
	must(t, err)
	if len(x.frames) < 4 {
		t.Fatalf("only %d frames", len(x.frames))
	}
	const bad = 2
	h, err := vfs.OpenUpdate(fs, f.path)
	must(t, err)
	if _, err := h.WriteAt([]byte("damage"), x.frames[bad].payloadAt()+1000); err != nil {
		t.Fatal(err)
	}
	must(t, h.Close())
	sector, failed := 0, 0
	must(t, st.Each(0, ^uint64(0), func(r *Record) error {
		if r.Kind != Write {
			return nil
		}
		needs := x.order[sector]/(FrameRaw/sectorSize) == bad
		sector++
		err := s.ReadAt(make([]byte, sectorSize), r.Pos, r.Sums)
		if needs {
			failed++
		}
		if errors.Is(err, block.ErrCorrupt) != needs || err != nil && !needs {
			t.Errorf("record %d, which needs what is damaged (%v): %v", r.Seq, needs, err)
		}
		return nil
	}))
	if failed != FrameRaw/sectorSize {
		t.Errorf("%d writes could not be read", failed)
	}
	hours := &Thinning{Roots: []Root{{Seq: 1}, {Seq: f.lastSeq + 1}}, Level: func(int64) Level { return Hours }, Pace: func(int) error { return nil }}
	if done, _, err := st.Thin(hours); !errors.Is(err, block.ErrCorrupt) || done.Files != 0 || st.files[0] != f {
		t.Errorf("what is damaged was thinned: %+v, %v", done, err)
	}
	must(t, s.Close())
}

// Whatever an index with fitting checksums says, what comes of it is an error or the bytes that were written.
func TestPlacedHostile(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s, st := placedStream(t, fs)
	f := st.files[0]
	whole := readAll(t, fs, f.path)
	x, err := f.index()
	must(t, err)
	must(t, s.Close())
	end := len(whole) - footerSize
	index := int(le.Uint64(whole[end+40:]))
	sheets := index + len(x.frames)*tableEntry
	order := sheets + len(x.sheets)*sheetEntry
	put := func(at int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[at:], v) } }
	cases := map[string]func([]byte){
		"a place outside":             put(order, uint32(len(x.order))),
		"a place far outside":         put(order+4, 1<<31),
		"another place":               put(order, x.order[0]^1),
		"a sheet too long":            put(sheets, maxFrameMeta+1),
		"a sheet with more":           put(sheets+4, MaxFileRaw),
		"a sheet with part":           put(sheets+4, 100),
		"a frame with part":           put(index+8, FrameRaw-1),
		"a frame too long":            put(index+8, 1<<30),
		"a frame with records":        put(index+16, 1),
		"a frame that lies elsewhere": put(index, headerSize+1),
		"many sheets":                 put(end+76, 1<<30),
		"no sheet":                    put(end+76, 0),
		"many sectors":                put(end+80, 1<<31),
		"fewer sectors":               put(end+80, uint32(len(x.order))-1),
		"no frames":                   put(end+16, 0),
		"more payload":                put(end+20, MaxFileRaw),
		"reserved":                    put(end+84, 1),
	}
	for name, spoil := range cases {
		b := bytes.Clone(whole)
		spoil(b)
		le.PutUint32(b[end+56:], crc32.Checksum(b[index:end], castagnoli))
		le.PutUint32(b[end+124:], crc32.Update(le.Uint32(b[headerSize-4:]), castagnoli, b[end:end+124]))
		fs := vfs.NewCrashableMem()
		writeAll(t, fs, f.path, b)
		s, bad, err := Open(Options{FS: fs, Dir: "history", StoreID: block.UUID{1}})
		must(t, err)
		err = bad[testVolume]
		if st := s.Stream(testVolume); st != nil {
			err = st.Each(0, ^uint64(0), func(r *Record) error {
				if r.Kind != Write {
					return nil
				}
				return s.ReadAt(make([]byte, r.Len), r.Pos, r.Sums)
			})
		}
		if !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, s.Close())
	}
}
