package e2e

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// TestFlippedBits flips one bit at a time in each kind of file. hvd refuses to start and says where, or answers EIO for what is damaged, or has another copy; `store check`
// finds every one of them.
func TestFlippedBits(t *testing.T) {
	t.Parallel() // it waits for many starts
	f := sharedFixture(t)
	const sealedAt, openAt = fixtureSettled + 3<<20, fixtureLogged - 1<<20 // places whose records lie in a sealed log file, and in the last one
	settled, sealed, open := f.content[1<<20:][:64], f.content[sealedAt:][:64], f.content[openAt:][:64]
	footerMagic := []byte("HNXLOGE\n")
	type expect int
	const (
		refused expect = iota // hvd does not start
		partly                // EIO, for at most most bytes
		found                 // either
		whole                 // another copy serves, or nothing of it is needed to serve
	)
	for _, c := range []struct {
		name  string
		flip  func(d *daemon)
		want  expect
		most  int // bytes that may answer EIO
		where int // that lie around here
	}{
		{"payload of a sealed record", func(d *daemon) { path, at := find(t, d.files("log/*.log"), sealed); flip(t, path, at+9) }, partly, 4096, sealedAt},
		{"header of a sealed record", func(d *daemon) { path, at := recordBefore(d, sealed); flip(t, path, at+9) }, whole, 0, 0},
		{"sum in a sealed record", func(d *daemon) { path, at := recordBefore(d, sealed); flip(t, path, at+96+20*3) }, whole, 0, 0},
		{"index of a log file", func(d *daemon) { path, at := indexOf(d, footerMagic); flip(t, path, at+50) }, whole, 0, 0},
		{"footer of a log file", func(d *daemon) { path, at := find(t, d.files("log/*.log"), footerMagic); flip(t, path, at+25) }, whole, 0, 0},
		{"header of a log file", func(d *daemon) { path, _ := find(t, d.files("log/*.log"), sealed); flip(t, path, 44) }, refused, 0, 0},
		{"payload of an open record", func(d *daemon) { path, at := find(t, d.files("log/*.log"), open); flip(t, path, at+9) }, refused, 0, 0},
		{"header of an open record", func(d *daemon) { path, at := recordBefore(d, open); flip(t, path, at+9) }, refused, 0, 0},
		{"sum in an open record", func(d *daemon) { path, at := recordBefore(d, open); flip(t, path, at+96+20*3) }, refused, 0, 0},
		{"payload of a frame", func(d *daemon) { path, at := find(t, d.files("segments/*/*.seg"), settled); flip(t, path, at+9) }, partly, 64 << 10, 1 << 20},
		{"header of a frame", func(d *daemon) { path, at := magicBefore(d, "segments/*/*.seg", "HFRM", settled); flip(t, path, at+13) }, partly, 64 << 10, 1 << 20},
		{"table of a frame", func(d *daemon) {
			path, at := magicBefore(d, "segments/*/*.seg", "HFRM", settled)
			flip(t, path, at+64+3)
		}, partly, 64 << 10, 1 << 20},
		{"header of a segment", func(d *daemon) { path, _ := find(t, d.files("segments/*/*.seg"), settled); flip(t, path, 20) }, found, fixtureSettled, 0},
		{"reserved byte of a segment", func(d *daemon) { path, _ := find(t, d.files("segments/*/*.seg"), settled); flip(t, path, 3000) }, found, fixtureSettled, 0},
		{"directory of a segment", func(d *daemon) {
			path, _ := find(t, d.files("segments/*/*.seg"), settled)
			flip(t, path, size(t, path)-256-40)
		}, whole, 0, 0},
		{"footer of a segment", func(d *daemon) {
			path, _ := find(t, d.files("segments/*/*.seg"), settled)
			flip(t, path, size(t, path)-256+90)
		}, whole, 0, 0},
		{"one superblock", func(d *daemon) { flip(t, d.files("super.0")[0], 100) }, whole, 0, 0},
		{"the other superblock", func(d *daemon) { flip(t, d.files("super.1")[0], 2000) }, whole, 0, 0},
		{"both superblocks", func(d *daemon) { flip(t, d.files("super.0")[0], 30); flip(t, d.files("super.1")[0], 50) }, refused, 0, 0},
		{"domain key", func(d *daemon) { flip(t, d.files("domain.key")[0], 7) }, refused, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := f.copy(t)
			c.flip(d)
			d.checkFinds()
			v := d.judge(f.content)
			t.Logf("%+v", v)
			switch {
			case c.want == refused && !v.refused, c.want == partly && v.refused, c.want == found && !v.refused && v.lost == 0:
				t.Errorf("the damage went unseen: %+v", v)
			case c.want == whole && (v.refused || v.lost > 0):
				t.Errorf("not needed to serve, but: %+v", v)
			case v.lost > c.most || v.lost > 0 && (v.from > c.where || v.from+v.lost < c.where):
				t.Errorf("%d bytes from %d on are lost, want at most %d around %d", v.lost, v.from, c.most, c.where)
			}
		})
	}
}

// recordBefore finds the record of the log that holds a payload.
func recordBefore(d *daemon, payload []byte) (path string, at int) {
	return magicBefore(d, "log/*.log", "HNLR", payload)
}

// magicBefore finds the last magic before a payload.
func magicBefore(d *daemon, pattern, magic string, payload []byte) (path string, at int) {
	d.t.Helper()
	path, at = find(d.t, d.files(pattern), payload)
	if at = bytes.LastIndex(contents(d.t, path)[:at], []byte(magic)); at < 0 {
		d.t.Fatalf("no %s before the payload in %s", magic, path)
	}
	return path, at
}

// indexOf finds the index of a sealed log file: its footer has the offset.
func indexOf(d *daemon, footerMagic []byte) (path string, at int) {
	d.t.Helper()
	path, at = find(d.t, d.files("log/*.log"), footerMagic)
	return path, int(binary.LittleEndian.Uint64(contents(d.t, path)[at+72:]))
}

func size(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Size())
}

// TestFlippedBitsInMetadata flips bits all over Pebble's files, region pages among them. No flip may lead to wrong data; a flip in a table or in its log must be seen.
func TestFlippedBitsInMetadata(t *testing.T) {
	t.Parallel() // it waits for many starts
	f := sharedFixture(t)
	d := f.copy(t)
	var names []string
	for _, path := range d.files("meta/*") {
		names = append(names, filepath.Base(path))
	}
	parts := []int{1, 3, 5, 7}
	if testing.Short() {
		parts = []int{4}
	}
	seen := map[string]int{}
	for _, name := range names {
		n := size(t, filepath.Join(d.dir, "meta", name))
		for _, part := range parts {
			if n == 0 {
				continue
			}
			d := f.copy(t)
			flip(t, filepath.Join(d.dir, "meta", name), n*part/8)
			v := d.judge(f.content)
			t.Logf("%s at %d of %d: %+v", name, n*part/8, n, v)
			// Who meets it first is a matter of timing: the start, which makes the metadata anew, some background work, which leaves a mark for the next one, or a read.
			if v.refused || v.lost > 0 || d.sawDamagedMetadata() {
				seen[filepath.Ext(name)]++
			}
			d.kill()
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("seen: %v", seen)
	if seen[".sst"] == 0 {
		t.Error("no damage of a table was ever seen")
	}
}

// sawDamagedMetadata reports whether a daemon has made its metadata anew, or has left word for the next start to do so.
func (d *daemon) sawDamagedMetadata() bool {
	d.t.Helper()
	marks, err := filepath.Glob(filepath.Join(d.dir, "meta.[ds]*")) // meta.damaged-N, meta.suspect
	if err != nil {
		d.t.Fatal(err)
	}
	return len(marks) > 0
}

// TestFilesOfAnotherStore puts files of one store into another. They are alike in everything but their identity.
func TestFilesOfAnotherStore(t *testing.T) {
	t.Parallel() // it waits for many starts
	mine, theirs := sharedFixture(t), newFixture(t, 100)
	foreign := theirs.copy(t)
	for _, c := range []struct {
		name    string
		refused bool
		put     func(d *daemon)
	}{
		{"log", true, func(d *daemon) { exchange(t, foreign, d, "log") }},
		{"meta", true, func(d *daemon) { exchange(t, foreign, d, "meta") }},
		{"segments", false, func(d *daemon) { exchange(t, foreign, d, "segments") }},
		{"domain.key", true, func(d *daemon) { exchange(t, foreign, d, "domain.key") }},
		{"superblocks", true, func(d *daemon) { exchange(t, foreign, d, "super.0"); exchange(t, foreign, d, "super.1") }},
		{"superblocks and key", true, func(d *daemon) {
			for _, name := range []string{"super.0", "super.1", "domain.key"} {
				exchange(t, foreign, d, name)
			}
		}},
		{"superblocks, key and metadata", true, func(d *daemon) {
			for _, name := range []string{"super.0", "super.1", "domain.key", "meta"} {
				exchange(t, foreign, d, name)
			}
		}},
		{"one file of the log", true, func(d *daemon) {
			path, _ := recordBefore(d, mine.content[fixtureSettled+5<<20:][:64])
			exchange(t, foreign, d, filepath.Join("log", filepath.Base(path)))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := mine.copy(t)
			c.put(d)
			v := d.judge(mine.content)
			t.Logf("%+v", v)
			if c.refused != v.refused || !v.refused && v.lost == 0 {
				t.Errorf("refused: %v, want %v; %d bytes lost", v.refused, c.refused, v.lost)
			}
		})
	}
}

// exchange replaces a file or folder of one daemon's directory by another's.
func exchange(t *testing.T, from, to *daemon, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(to.dir, name)); err != nil {
		t.Fatal(err)
	}
	tool(t, "cp", "-a", filepath.Join(from.dir, name), filepath.Join(to.dir, name))
}

// TestMissingFiles takes files away.
func TestMissingFiles(t *testing.T) {
	t.Parallel() // it waits for many starts
	f := sharedFixture(t)
	for _, c := range []struct {
		pattern string
		refused bool
		whole   bool
	}{
		{"super.0", false, true}, {"super.1", false, true}, {"super.[01]", true, false}, {"domain.key", true, false}, {"meta", false, true}, {"meta/MANIFEST-*", false, true},
		{"log", true, false}, {"segments", false, false}, {"segments/*/*.seg", false, false}, {"lock", false, true},
	} {
		t.Run(c.pattern, func(t *testing.T) {
			d := f.copy(t)
			for _, path := range d.files(c.pattern) {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
			v := d.judge(f.content)
			t.Logf("%+v", v)
			if v.refused != c.refused || !v.refused && c.whole != (v.lost == 0) {
				t.Errorf("refused: %v, want %v; %d bytes lost", v.refused, c.refused, v.lost)
			}
		})
	}
}

// TestDamagedControlFiles spoils what the daemon keeps beside the store.
func TestDamagedControlFiles(t *testing.T) {
	t.Parallel() // it waits for many starts
	f := sharedFixture(t)
	for _, name := range []string{"attachments.json", "tokens.json"} {
		for what, text := range map[string]string{"empty": "", "cut": `{"format": "hyper-nixos `, "other version": `{"format": "hyper-nixos x", "version": 9}`, "zeroes": "\x00\x00\x00\x00"} {
			d := f.copy(t)
			put(t, filepath.Join(d.dir, "control", name), []byte(text))
			if v := d.judge(f.content); !v.refused {
				t.Errorf("%s, %s: hvd starts", name, what)
			}
		}
	}
}

// dataSegments lists the segments in a directory that hold guests' data: the class at byte 12 of their header tells.
func dataSegments(t *testing.T, dir string) (paths []string) {
	t.Helper()
	const warm = 2
	for _, path := range globAll(t, filepath.Join(dir, "segments/*/*.seg")) {
		if contents(t, path)[12] == warm {
			paths = append(paths, path)
		}
	}
	return paths
}

// TestStaleSegments puts segment files of an earlier time back: of segments that are gone, of one that has grown since, and of one under the name of another.
func TestStaleSegments(t *testing.T) {
	t.Parallel() // it waits for the disk
	d := startDaemon(t)
	d.disk("v", "64MiB")
	write := func(seed int) []byte {
		t.Helper()
		c := openNBD(t, d.nbdSocket(), "v")
		data := randomBytes(seed, 64<<20)
		for off := 0; off < len(data); off += 4 << 20 {
			if err := c.write(data[off:][:4<<20], uint64(off)); err != nil {
				t.Fatal(err)
			}
		}
		d.settle()
		return data
	}
	write(1)
	d.stop()
	old := shortDir(t)
	tool(t, "cp", "-a", filepath.Join(d.dir, "segments"), old)
	d.start()
	data := write(2)
	write3 := func() { data = write(3) }
	write3()
	d.stop()

	for _, path := range dataSegments(t, old) {
		to := filepath.Join(d.dir, "segments", filepath.Base(filepath.Dir(path)), filepath.Base(path))
		if _, err := os.Stat(to); err == nil {
			t.Errorf("segment %s is still there though all its data was overwritten", to)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		tool(t, "cp", "-a", path, to)
	}
	if v := d.judge(data); v.refused || v.lost > 0 {
		t.Errorf("with segments put back: %+v", v)
	}
	if next := write(4); !bytes.Equal(next[:64], randomBytes(4, 64)) {
		t.Error("the content to compare with is wrong")
	} else {
		data = next
	}
	d.stop()
	d.check()

	live := dataSegments(t, d.dir)
	if len(live) < 2 {
		t.Fatalf("want two segments, there are %q", live)
	}
	tool(t, "cp", "-a", live[0], live[1])
	v := d.judge(data)
	if !v.refused && v.lost == 0 {
		t.Error("a segment under the name of another went unseen")
	}
	t.Logf("a segment under the name of another: %+v", v)
}

func globAll(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %q, %v", pattern, paths, err)
	}
	return paths
}
