package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func unwrapBy(ids ...age.Identity) Unwrap {
	return func(sealed []byte) ([]byte, error) { return secret.Unwrap(sealed, 1<<20, ids...) }
}

// forge changes a file for as long as f runs.
func forge(t *testing.T, path string, change func(b []byte) []byte, f func()) {
	t.Helper()
	was := read(t, path)
	if err := os.WriteFile(path, change(bytes.Clone(was)), 0o600); err != nil {
		t.Fatal(err)
	}
	f()
	if err := os.WriteFile(path, was, 0o600); err != nil {
		t.Fatal(err)
	}
}

// With its key an encrypted store is read as one that is not: frames, hashes, records, checkpoints; and what only somebody without the key can have written, under checksums that fit, is found. Without it that is not seen.
func TestSealedStoreIsOpened(t *testing.T) {
	id, other := newIdentity(t), newIdentity(t)
	l := newSealedLab(t, 31, blockstore.Keys{Identities: []age.Identity{id}})
	l.create("a", 64<<20)
	l.write("a", 0, l.pool[0])
	l.write("a", 8<<20, l.pool[1])
	l.snapshot("a", "s1")
	l.write("a", 100_000, l.data(150_000))
	l.settle()
	l.write("a", 20<<20, l.pool[2][:8192])
	l.close()
	with := func(ids ...age.Identity) Options { return Options{Unwrap: unwrapBy(ids...)} }
	check := func(opts Options) Report {
		t.Helper()
		rep, err := Run(context.Background(), l.dir, opts)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	blind := check(Options{})
	if blind.Errors != 0 || blind.Warnings != 1 {
		t.Errorf("without a key: %d errors, %d warnings", blind.Errors, blind.Warnings)
	}
	seen := check(with(other, id))
	for _, f := range seen.Findings {
		t.Errorf("with the key: %s", f.String())
	}
	if seen.Totals.CheckpointBytes == 0 || blind.Totals.CheckpointBytes != 0 || seen.Totals.LogRecords == 0 {
		t.Errorf("with the key %+v, without %+v", seen.Totals, blind.Totals)
	}
	if _, err := Run(context.Background(), l.dir, with(other)); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another key: %v", err)
	}
	if _, err := DumpLog(l.dir, 0, unwrapBy(other)); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a dump with another key: %v", err)
	}

	segments := segmentFiles(t, l.dir, 2)
	forge(t, segments[len(segments)-1], func(b []byte) []byte {
		head := b[segHeaderSize:]
		fr, err := parseFrame(head)
		if err != nil {
			t.Fatal(err)
		}
		fr.payload[0] ^= 1 // lent from b
		binary.LittleEndian.PutUint32(head[20:], crc(fr.payload))
		binary.LittleEndian.PutUint32(head[60:], crc(head[:60]))
		return b
	}, func() {
		if rep := check(Options{}); rep.Errors != 0 {
			t.Errorf("a forged frame is seen without a key: %v", rep.Findings)
		}
		if rep := check(with(id)); rep.Errors == 0 || !strings.Contains(fmt.Sprint(rep.Findings), "authentication tag of this frame") {
			t.Errorf("a forged frame is not seen: %v", rep.Findings)
		}
	})
	forge(t, filepath.Join(l.dir, keysName), func(b []byte) []byte {
		_, body, _ := bytes.Cut(b, []byte("\n"))
		var k keysBody
		if err := json.Unmarshal(body, &k); err != nil {
			t.Fatal(err)
		}
		k.Slots = append(k.Slots, k.Slots[0])
		k.Slots[1].Recipient = other.Recipient().String()
		body, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		return append(fmt.Appendf(nil, keysTitle, 1, crc(body)), body...)
	}, func() {
		if rep := check(with(id)); rep.Errors == 0 || !strings.Contains(fmt.Sprint(rep.Findings), "somebody put himself into the list") {
			t.Errorf("a slot that nobody with a key made is not seen: %v", rep.Findings)
		}
	})

	plain := newLab(t, 32)
	plain.close()
	if _, err := Run(context.Background(), plain.dir, with(id)); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a key for a store that is not encrypted: %v", err)
	}
}

// With its key the history of an encrypted store is opened: meta, payload and index by their tags; what was changed under checksums that fit is found.
func TestSealedHistoryIsOpened(t *testing.T) {
	id := newIdentity(t)
	l := newSealedLab(t, 34, blockstore.Keys{Identities: []age.Identity{id}})
	l.create("a", 8<<20)
	l.must(l.s.SetHistory(context.Background(), "a", blockstore.HistoryPolicy{Window: time.Hour}))
	for i := range uint64(3) {
		l.write("a", i<<20, l.data(200_000))
		l.trim("a", 4<<20, 1<<20)
		l.flush("a")
		_, err := l.s.MarkHistory(context.Background(), "a", "mark")
		l.must(err)
	}
	l.close()
	files, err := filepath.Glob(filepath.Join(l.dir, historyName, "0000000000000001", "*"+historySuffix))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	check := func(opts Options) Report {
		t.Helper()
		rep, err := Run(context.Background(), l.dir, opts)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	key := Options{Unwrap: unwrapBy(id)}
	if rep := check(key); rep.Errors+rep.Warnings != 0 || rep.Totals.HistoryFiles == 0 {
		t.Fatalf("with the key: %+v", rep)
	}
	d, err := DumpHistory(files[0], "", nil)
	if err != nil || !d.Sealed || len(d.Frames) == 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	le := binary.LittleEndian
	for what, at := range map[string]func(head []byte) int{
		"meta":    func([]byte) int { return historyFrame },
		"payload": func(head []byte) int { return historyFrame + int(le.Uint32(head[20:])) },
	} {
		forge(t, files[0], func(b []byte) []byte {
			chain, changed := le.Uint32(b[historyHead-4:]), false
			for _, f := range d.Frames {
				frame := b[f.Offset:]
				meta := int(le.Uint32(frame[20:]))
				end := historyFrame + meta + int(le.Uint32(frame[28:]))
				if !changed && f.Stored > 0 {
					frame[at(frame)] ^= 1
					changed = true
				}
				le.PutUint32(frame[48:], crc(frame[historyFrame:historyFrame+meta]))
				le.PutUint32(frame[52:], crc(frame[historyFrame+meta:end]))
				chain = crcMore(chain, frame[:60])
				le.PutUint32(frame[60:], chain)
			}
			if !changed {
				t.Fatal("no frame has a payload")
			}
			foot := b[len(b)-historyFoot:]
			le.PutUint32(foot[60:], chain)
			le.PutUint32(foot[historyFoot-4:], crcMore(le.Uint32(b[historyHead-4:]), foot[:historyFoot-4]))
			return b
		}, func() {
			if rep := check(Options{}); rep.Errors != 0 {
				t.Errorf("%s, without a key: %v", what, rep.Findings)
			}
			if rep := check(key); rep.Errors == 0 || !strings.Contains(fmt.Sprint(rep.Findings), "authentication tag of this "+what) {
				t.Errorf("%s, with the key: %v", what, rep.Findings)
			}
		})
	}
}

// A dump of a file of an encrypted history shows what records did with the key alone, which it finds with the store that the file lies in, or that is named; that of a store that is not encrypted needs none.
func TestDumpOfASealedHistory(t *testing.T) {
	id, other := newIdentity(t), newIdentity(t)
	made := func(l *lab) string {
		l.create("a", 8<<20)
		l.must(l.s.SetHistory(context.Background(), "a", blockstore.HistoryPolicy{Window: time.Hour}))
		l.write("a", 0, l.data(200_000)[:196608])
		l.trim("a", 4<<20, 1<<20)
		l.must(l.s.ResizeVolume(context.Background(), "a", 16<<20))
		_, err := l.s.MarkHistory(context.Background(), "a", "before the upgrade")
		l.must(err)
		l.flush("a")
		l.close()
		files, err := filepath.Glob(filepath.Join(l.dir, historyName, "0000000000000001", "*"+historySuffix))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		return files[0]
	}
	sealed, plain := newSealedLab(t, 35, blockstore.Keys{Identities: []age.Identity{id}}), newLab(t, 36)
	file, plainFile := made(sealed), made(plain)
	aside := filepath.Join(t.TempDir(), "aside.hist")
	if err := os.WriteFile(aside, read(t, file), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		file, dir string
		unwrap    Unwrap
		opened    bool
		err       error
	}{
		"no key":                           {file, "", nil, false, nil},
		"the key":                          {file, "", unwrapBy(other, id), true, nil},
		"another key":                      {file, "", unwrapBy(other), false, ErrWrongKey},
		"aside, no key":                    {aside, "", nil, false, nil},
		"aside, the key":                   {aside, "", unwrapBy(id), false, block.ErrNotFound},
		"aside, the key and its store":     {aside, sealed.dir, unwrapBy(id), true, nil},
		"aside, the key and another store": {aside, plain.dir, unwrapBy(id), false, block.ErrInvalid},
		"not encrypted, no key":            {plainFile, "", nil, true, nil},
		"not encrypted, a key":             {plainFile, "", unwrapBy(id), false, block.ErrInvalid},
		"not encrypted, another store's":   {plainFile, sealed.dir, unwrapBy(id), false, block.ErrInvalid},
		"none":                             {aside + ".gone", "", nil, false, os.ErrNotExist},
	} {
		d, err := DumpHistory(c.file, c.dir, c.unwrap)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", what, err, c.err)
		}
		if err != nil || c.err != nil {
			continue
		}
		if d.Error != "" || d.Opened != c.opened || len(d.Frames) == 0 || len(d.Points) > 0 != c.opened {
			t.Errorf("%s: %+v", what, d)
		}
		var sum HistoryDid
		for _, f := range d.Frames {
			if (f.Did != nil) != c.opened {
				t.Errorf("%s: frame %+v", what, f)
			} else if c.opened {
				sum.WriteBytes, sum.TrimBytes, sum.Flushes = sum.WriteBytes+f.Did.WriteBytes, sum.TrimBytes+f.Did.TrimBytes, sum.Flushes+f.Did.Flushes
			}
		}
		if c.opened && (sum.WriteBytes != 196608 || sum.TrimBytes != 1<<20 || !slices.ContainsFunc(d.Points, func(p HistoryPoint) bool { return p.Kind == "mark" && p.Label == "before the upgrade" }) ||
			!slices.ContainsFunc(d.Points, func(p HistoryPoint) bool { return p.Kind == "resize" && p.Size == 16<<20 })) {
			t.Errorf("%s: %+v, %+v", what, sum, d.Points)
		}
	}
	// Meta that its tag and checksums fit and that makes no sense is damage, not the end of the file.
	forge(t, plainFile, func(b []byte) []byte {
		le, foot := binary.LittleEndian, b[len(b)-historyFoot:]
		frame := b[historyHead:]
		frame[historyFrame] = 77 // the kind of the first record
		meta := int(le.Uint32(frame[20:]))
		le.PutUint32(frame[48:], crc(frame[historyFrame:historyFrame+meta]))
		le.PutUint32(frame[60:], crcMore(le.Uint32(b[historyHead-4:]), frame[:60]))
		clear(foot) // so that it is no longer known to be sealed
		return b
	}, func() {
		d, err := DumpHistory(plainFile, "", nil)
		if err != nil || !strings.Contains(d.Error, "kind 77") {
			t.Errorf("a record of no kind: %+v, %v", d, err)
		}
	})
}

// A dump of an encrypted log shows what control records say with the key alone, and ends at a sector that was changed under checksums that fit.
func TestDumpOfASealedLog(t *testing.T) {
	id := newIdentity(t)
	l := newSealedLab(t, 33, blockstore.Keys{Identities: []age.Identity{id}})
	l.create("a", 64<<20)
	l.flush("a")
	for i := range uint64(3) {
		l.write("a", i<<20, l.pool[i][:8192])
		l.flush("a")
	}
	dir := steadyCopy(t, l.dir)
	l.close()
	dump := func(unwrap Unwrap) *LogDump {
		t.Helper()
		all, err := DumpLog(dir, 1, unwrap)
		if err != nil || len(all) != 1 || len(all[0].Records) == 0 {
			t.Fatalf("%+v, %v", all, err)
		}
		return all[0]
	}
	blind, seen := dump(nil), dump(unwrapBy(id))
	if c, ok := seen.Records[0].Control.(*control); !ok || c.Name != "a" || strings.Contains(seen.Stopped, "tag") || len(seen.Records) != 4 {
		t.Errorf("with the key: %+v, %+v", seen, seen.Records[0])
	}
	if blind.Records[0].Control != nil {
		t.Errorf("without a key: %+v", blind.Records[0])
	}
	forge(t, filepath.Join(dir, blind.File), func(b []byte) []byte {
		last, before := blind.Records[3], blind.Records[2]
		head := b[last.At:][:recordHeader]
		descs := b[last.At+recordHeader:][:2*descSize]
		sector := b[last.At+recordHeader+2*descSize:][:block.Size]
		sector[7] ^= 1
		binary.LittleEndian.PutUint32(descs, crc(sector))
		chain := binary.LittleEndian.Uint32(b[before.At+92:])
		binary.LittleEndian.PutUint32(head[92:], crcMore(crcMore(chain, head[:88]), descs))
		return b
	}, func() {
		if d := dump(nil); len(d.Records) != 4 || strings.Contains(d.Stopped, "tag") {
			t.Errorf("without a key: %+v", d)
		}
		if d := dump(unwrapBy(id)); len(d.Records) != 3 || !strings.Contains(d.Stopped, "authentication tag") {
			t.Errorf("with the key: %+v", d)
		}
	})
}
