package check

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// field is a part of a format that a test damages.
type field struct {
	name   string
	off, n int
}

// flips damages each field of a structure at base twice: as it is, and with its checksums put right by fix, unless that makes another valid one.
func flips(t *testing.T, dir, path string, base int, fields []field, fix func(b []byte), free ...string) {
	rel, _ := filepath.Rel(dir, path)
	for _, f := range fields {
		t.Run(f.name, func(t *testing.T) {
			rep := mutate(t, dir, path, func(b []byte) []byte { b[base+f.off+f.n/2] ^= 0x10; return b })
			mustFind(t, rep, rel)
		})
		if fix == nil || slices.Contains(free, f.name) {
			continue
		}
		t.Run(f.name+" with right sums", func(t *testing.T) {
			bits := byte(0x13)
			if f.name == "incompat" {
				bits = 0x93 // one of them is no feature's yet
			}
			rep := mutate(t, dir, path, func(b []byte) []byte { b[base+f.off] ^= bits; fix(b); return b })
			mustFind(t, rep, "")
		})
	}
}

func TestDamagedFiles(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	dir := richStore(t)
	rep := mustBeClean(t, dir, "as it was made")
	t.Logf("%+v", rep.Totals)
	t.Run("super", func(t *testing.T) { damageSuper(t, dir) })
	t.Run("log", func(t *testing.T) { damageLog(t, dir) })
	t.Run("segment", func(t *testing.T) { damageSegment(t, dir) })
	t.Run("missing", func(t *testing.T) { damageNames(t, dir) })
	t.Run("metadata", func(t *testing.T) { damageTables(t, dir) })
	mustBeClean(t, dir, "after all was put back")
}

var superFields = []field{
	{"magic", 0, 8}, {"version", 8, 4}, {"reserved 1", 12, 4}, {"generation", 16, 8}, {"store", 24, 16}, {"domain", 40, 16}, {"ro-compat", 64, 8}, {"incompat", 72, 8},
	{"flags", 80, 8}, {"created", 88, 8}, {"boot epoch", 96, 8}, {"owner epoch", 104, 8}, {"cut kind", 112, 4}, {"cut min", 116, 4}, {"cut avg", 120, 4}, {"cut max", 124, 4},
	{"cut table", 128, 4}, {"reserved 2", 132, 4}, {"checkpoints", 136, 48}, {"key slots", 184, 320}, {"reserved 3", 1000, 4}, {"crc", 4092, 4},
}

func damageSuper(t *testing.T, dir string) {
	for i := range 2 {
		path := filepath.Join(dir, superName(i))
		fix := func(b []byte) { fixSum(b, 4092) }
		t.Run(superName(i), func(t *testing.T) {
			flips(t, dir, path, 0, superFields, fix, "crc")
			mustFind(t, mutate(t, dir, path, func(b []byte) []byte { return b[:4000] }), superName(i))
			mustFind(t, mutate(t, dir, path, func(b []byte) []byte { return append(b, 0) }), superName(i))
		})
	}
	mustFind(t, mutate(t, dir, filepath.Join(dir, "domain.key"), func(b []byte) []byte { b[3]++; return b }), "domain.key")
	mustFind(t, mutate(t, dir, filepath.Join(dir, "domain.key"), func(b []byte) []byte { return b[:31] }), "domain.key")
}

// liveLog returns the last log file with records, its header, and where its first write and its first control record lie.
func liveLog(t *testing.T, dir string) (path string, lf *logFile, write, control *logRecord) {
	t.Helper()
	for _, p := range files(t, filepath.Join(dir, "log"), ".log") {
		var id uint32
		if _, err := fmt.Sscanf(filepath.Base(p), "%08x.log", &id); err != nil {
			t.Fatal(err)
		}
		f, file, err := openLogFile(dir, id)
		if err != nil {
			t.Fatal(err)
		}
		if f.header != nil && !f.unused {
			var w, c *logRecord
			if err := f.scan(file, 0, func(rec *logRecord) error {
				switch {
				case rec.Kind == kindWrite && w == nil && rec.sectors > 1:
					w = rec
				case rec.Kind >= firstControl && c == nil:
					c = rec
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if w != nil && c != nil {
				path, lf, write, control = p, f, w, c
			}
		}
		file.Close()
	}
	if path == "" {
		t.Fatal("no log file with a write and a control record")
	}
	return path, lf, write, control
}

func damageLog(t *testing.T, dir string) {
	path, lf, write, control := liveLog(t, dir)
	t.Run("header", func(t *testing.T) {
		flips(t, dir, path, 0, []field{
			{"magic", 0, 8}, {"version", 8, 4}, {"size", 12, 4}, {"store", 16, 16}, {"id", 32, 4}, {"key id", 36, 4}, {"boot epoch", 40, 8}, {"owner epoch", 48, 8}, {"salt", 56, 32},
			{"previous", 88, 4}, {"previous chain", 92, 4}, {"first seq", 96, 8}, {"created", 104, 8}, {"durable", 112, 8}, {"capacity", 120, 8}, {"reserved", 128, 380}, {"crc", 508, 4}, {"rest", 512, 3584},
		}, func(b []byte) { fixSum(b, 508) }, "crc", "rest")
	})
	seed := lf.header.seed
	record := []field{
		{"magic", 0, 4}, {"kind", 4, 1}, {"reserved 1", 5, 1}, {"flags", 6, 2}, {"seq", 8, 8}, {"time", 16, 8}, {"volume", 24, 8}, {"offset", 32, 8}, {"length", 40, 8}, {"durable", 48, 8},
		{"map epoch", 56, 4}, {"payload length", 60, 4}, {"sectors", 64, 4}, {"payload crc", 68, 4}, {"tag", 72, 16}, {"crc", 88, 4}, {"chain", 92, 4},
	}
	for name, rec := range map[string]*logRecord{"write": write, "control": control} {
		at := int(rec.At)
		t.Run(name, func(t *testing.T) {
			flips(t, dir, path, at, record, func(b []byte) {
				binary.LittleEndian.PutUint32(b[at+88:], crcMore(seed, b[at:at+88]))
			}, "crc", "chain")
		})
	}
	at := int(write.At)
	t.Run("body", func(t *testing.T) {
		payload := 96 + 20*int(write.sectors)
		flips(t, dir, path, at, []field{{"descriptor sum", 96, 4}, {"descriptor tag", 100, 16}, {"payload first", payload, 4096}, {"payload last", payload + int(write.PayloadLen) - 1, 1}}, nil)
		flips(t, dir, path, int(control.At), []field{{"op version", 96, 1}, {"op name", 96 + int(control.PayloadLen) - 1, 1}}, nil)
	})
	ft := lf.footer
	t.Run("index", func(t *testing.T) {
		var fields []field
		for off := range min(int(ft.IndexLen), 60) {
			fields = append(fields, field{fmt.Sprint("byte ", off), off, 1})
		}
		foot := int(lf.header.Capacity) - logPage
		flips(t, dir, path, int(ft.IndexOff), fields, func(b []byte) {
			binary.LittleEndian.PutUint32(b[foot+92:], crcMore(seed, b[ft.IndexOff:ft.IndexOff+ft.IndexLen]))
			binary.LittleEndian.PutUint32(b[foot+508:], crcMore(seed, b[foot:foot+508]))
		})
	})
	t.Run("footer", func(t *testing.T) {
		foot := int(lf.header.Capacity) - logPage
		flips(t, dir, path, foot, []field{
			{"magic", 0, 8}, {"version", 8, 4}, {"id", 12, 4}, {"boot epoch", 16, 8}, {"records", 24, 8}, {"first seq", 32, 8}, {"last seq", 40, 8}, {"min time", 48, 8}, {"max time", 56, 8},
			{"data end", 64, 8}, {"index offset", 72, 8}, {"index length", 80, 8}, {"chain", 88, 4}, {"index crc", 92, 4}, {"reserved", 96, 412}, {"crc", 508, 4}, {"rest", 512, 3584},
		}, func(b []byte) { binary.LittleEndian.PutUint32(b[foot+508:], crcMore(seed, b[foot:foot+508])) }, "crc", "rest")
	})
}

func damageSegment(t *testing.T, dir string) {
	path := ""
	for _, p := range segmentFiles(t, dir, 2) {
		if b, err := os.ReadFile(p); err == nil && string(b[len(b)-256:len(b)-248]) == "HNSEGFTR" {
			path = p
		}
	}
	if path == "" {
		t.Fatal("no sealed segment")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	foot := len(b) - segFooterSize
	ft, err := parseSegFooter(b[foot:], int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	all := func(b []byte) { // sums that cover others come last
		fixSum(b, 4092)
		binary.LittleEndian.PutUint32(b[foot+60:], crc(b[ft.DirOff:ft.DirOff+ft.DirLen]))
		binary.LittleEndian.PutUint32(b[foot+88:], crc(b[:ft.DirOff]))
		fixSum(b[foot:], 252)
	}
	t.Run("header", func(t *testing.T) {
		flips(t, dir, path, 0, []field{
			{"magic", 0, 8}, {"version", 8, 4}, {"class", 12, 1}, {"reserved 1", 13, 3}, {"store", 16, 16}, {"id", 32, 8}, {"generation", 40, 4}, {"key id", 44, 4}, {"salt", 48, 32}, {"domain", 80, 16},
			{"reserved 2", 96, 3996}, {"crc", 4092, 4},
		}, all, "crc")
	})
	fr, err := parseFrame(b[segHeaderSize:ft.DirOff])
	if err != nil {
		t.Fatal(err)
	}
	table := frameHeader + len(fr.Chunks)*frameChunkSize
	frame := func(b []byte) {
		f := b[segHeaderSize:]
		binary.LittleEndian.PutUint32(f[20:], crc(f[table:fr.Size]))
		binary.LittleEndian.PutUint32(f[24:], crc(f[frameHeader:table]))
		fixSum(f, 60)
		all(b)
	}
	t.Run("frame", func(t *testing.T) {
		flips(t, dir, path, segHeaderSize, []field{
			{"magic", 0, 4}, {"version", 4, 1}, {"codec", 5, 1}, {"flags", 6, 2}, {"chunks", 8, 4}, {"raw", 12, 4}, {"payload", 16, 4}, {"payload crc", 20, 4}, {"table crc", 24, 4}, {"key id", 28, 4},
			{"nonce", 32, 12}, {"tag", 44, 16}, {"crc", 60, 4}, {"hash", 64, 32}, {"id", 96, 8}, {"raw length", 104, 4}, {"reserved", 108, 4}, {"payload bytes", table + 5, 8},
		}, frame, "crc", "payload crc", "table crc")
	})
	t.Run("directory", func(t *testing.T) {
		flips(t, dir, path, int(ft.DirOff), []field{
			{"offset", 0, 4}, {"length", 4, 4}, {"raw", 8, 4}, {"chunks", 12, 4}, {"id", 16, 8}, {"hash", 24, 16}, {"raw length", 40, 4}, {"reserved", 44, 4},
		}, all)
	})
	t.Run("footer", func(t *testing.T) {
		flips(t, dir, path, foot, []field{
			{"magic", 0, 8}, {"version", 8, 4}, {"class", 12, 1}, {"codecs", 13, 1}, {"reserved 1", 14, 2}, {"store", 16, 16}, {"id", 32, 8}, {"generation", 40, 4}, {"frames", 44, 4}, {"chunks", 48, 4},
			{"directory offset", 52, 4}, {"directory length", 56, 4}, {"directory crc", 60, 4}, {"raw", 64, 8}, {"stored", 72, 8}, {"seal epoch", 80, 8}, {"data crc", 88, 4}, {"root hash", 92, 32},
			{"parity", 124, 4}, {"shards", 128, 68}, {"reserved 2", 196, 56}, {"crc", 252, 4},
		}, func(b []byte) { fixSum(b[foot:], 252) }, "crc", "seal epoch")
	})
	mustFind(t, mutate(t, dir, path, func(b []byte) []byte { return b[:len(b)-1] }), "segments")
	mustFind(t, mutate(t, dir, path, func(b []byte) []byte { return b[:100] }), "segments")
	mustFind(t, mutate(t, dir, path, func(b []byte) []byte { return append(b, 1) }), "segments")
}

// damageNames takes files away and puts others in their place.
func damageNames(t *testing.T, dir string) {
	segs := files(t, dir, ".seg")
	logPath, _, _, _ := liveLog(t, dir)
	for _, path := range []string{segs[0], segmentFiles(t, dir, classMeta)[0], logPath, filepath.Join(dir, "super.0"), filepath.Join(dir, "super.1"), filepath.Join(dir, "domain.key")} {
		rel, _ := filepath.Rel(dir, path)
		t.Run(rel, func(t *testing.T) {
			if err := os.Rename(path, path+".away"); err != nil {
				t.Fatal(err)
			}
			rep := checkAnyway(t, dir)
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
			if filepath.Dir(rel) == "log" {
				rel = "log"
			}
			mustFind(t, rep, rel)
		})
	}
	t.Run("a segment of another id", func(t *testing.T) {
		other, err := os.ReadFile(segs[len(segs)-1])
		if err != nil {
			t.Fatal(err)
		}
		mustFind(t, mutate(t, dir, segs[0], func([]byte) []byte { return other }), "segments")
	})
	t.Run("a segment without a row", func(t *testing.T) {
		extra := filepath.Join(filepath.Dir(segs[0]), "00000000000fff01.00000001.seg")
		if err := os.WriteFile(extra, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(extra)
		if rep := checkAnyway(t, dir); rep.Errors != 0 || rep.Warnings != 1 {
			t.Errorf("%d errors, %d warnings", rep.Errors, rep.Warnings)
		}
	})
}

// damageTables flips bytes in Pebble's own files.
func damageTables(t *testing.T, dir string) {
	tables := files(t, filepath.Join(dir, "meta"), ".sst")
	if len(tables) == 0 {
		t.Fatal("no table files")
	}
	for _, path := range tables {
		for part := range 4 {
			rep := mutate(t, dir, path, func(b []byte) []byte { b[len(b)*part/4+7] ^= 1; return b })
			if rep.Errors == 0 {
				t.Errorf("silence about a flip in part %d of %s", part, filepath.Base(path))
			}
		}
	}
}
