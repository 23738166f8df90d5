package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Where the parts of a fixture's volume lie, in bytes.
const (
	fixtureSize    = 32 << 20
	fixtureSettled = 12 << 20 // up to here it is in segments
	fixtureLogged  = 24 << 20 // up to here in the log, synced, with more behind it
	fixtureEnd     = 25 << 20 // the rest are zeroes
)

// fixture is a data directory of a daemon that was killed, and what its volume "v" must show. Tests work on copies.
type fixture struct {
	dir     string
	content []byte
}

// newFixture makes a store whose data lies in segments and in the log. Different seeds make stores of different content that are alike otherwise.
func newFixture(t *testing.T, seed int) *fixture {
	t.Helper()
	f := &fixture{content: make([]byte, fixtureSize)}
	d := newDaemon(t, "--store-destage-after", "1h", "--store-parity", "off")
	f.dir = d.dir
	d.start()
	d.disk("v", bytesText(fixtureSize))
	c := openNBD(t, d.nbdSocket(), "v")
	write := func(from, to int) {
		t.Helper()
		copy(f.content[from:to], randomBytes(seed+from>>20, to-from))
		for off := from; off < to; off += 1 << 20 {
			if err := c.write(f.content[off:off+1<<20], uint64(off)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
	}
	write(0, fixtureSettled)
	d.run("token", "create", "t", "--scope", "read")
	d.settle()
	d.run("snapshot", "create", "v@s")
	d.stop()
	d.start() // metadata is in tables of Pebble now
	c = openNBD(t, d.nbdSocket(), "v")
	write(fixtureSettled, fixtureLogged)
	write(fixtureLogged, fixtureEnd)
	d.kill()
	return f
}

// firstFixture is newFixture with seed 1, made once for all tests.
var firstFixture struct {
	once sync.Once
	f    *fixture // nil if it could not be made
}

func sharedFixture(t *testing.T) *fixture {
	t.Helper()
	firstFixture.once.Do(func() {
		f := newFixture(t, 1)
		kept := filepath.Join(filepath.Dir(hvdPath), "fixture") // which outlives this test, and goes with the programs
		tool(t, "cp", "-a", "--sparse=always", f.dir, kept)
		f.dir = kept
		firstFixture.f = f
	})
	if firstFixture.f == nil {
		t.Fatal("the fixture could not be made: the first test that asked for it says why")
	}
	return firstFixture.f
}

// copy returns a daemon on a copy of the fixture.
func (f *fixture) copy(t *testing.T) *daemon {
	t.Helper()
	d := newDaemon(t, "--store-destage-after", "1h", "--store-parity", "off")
	tool(t, "cp", "-a", "--sparse=always", f.dir+"/.", d.dir)
	return d
}

// files lists what matches a pattern below the directory of a daemon, largest first.
func (d *daemon) files(pattern string) []string {
	d.t.Helper()
	paths, err := filepath.Glob(filepath.Join(d.dir, pattern))
	if err != nil {
		d.t.Fatal(err)
	}
	if len(paths) == 0 {
		d.t.Fatalf("no file matches %s", pattern)
	}
	return paths
}

// contents reads a file.
func contents(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// flip changes one bit.
func flip(t *testing.T, path string, at int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// find returns which of the files holds a string, and where.
func find(t *testing.T, paths []string, what []byte) (path string, at int) {
	t.Helper()
	for _, path := range paths {
		if at := bytes.Index(contents(t, path), what); at >= 0 {
			return path, at
		}
	}
	t.Fatalf("% x … is in none of %q", what[:min(len(what), 16)], paths)
	return "", 0
}

// verdict is what a daemon made of a damaged directory.
type verdict struct {
	refused bool
	said    string // the line of error of a refusal
	lost    int    // bytes that answer EIO
	from    int    // the first of them
}

// judge starts the daemon and reads all of the volume. It fails the test on wrong data, on any error but EIO, and on a refusal that is not one line that names a file below
// the directory.
func (d *daemon) judge(want []byte) (v verdict) {
	d.t.Helper()
	d.launch()
	for !d.dead() && d.try("status").code != 0 {
		time.Sleep(20 * time.Millisecond)
	}
	if d.dead() {
		lines := strings.Split(strings.TrimSpace(d.log.String()), "\n")
		v.refused, v.said = true, lines[len(lines)-1]
		if code := d.wait(); code != 1 || !strings.HasPrefix(v.said, "hvd: ") || !strings.Contains(v.said, d.dir) {
			d.t.Errorf("refused with exit code %d, want 1 and a line that names the place: %s", code, v.said)
		}
		return v
	}
	c, err := dialNBD(d.nbdSocket(), "v")
	if err != nil {
		d.t.Errorf("open the volume: %v", err)
		return v
	}
	defer c.conn.Close()
	// What cannot be read as a whole is read in ever smaller pieces, of which the first and the last of each stand for the rest when both are lost.
	for off := 0; off < len(want); off += 1 << 20 {
		d.probe(c, want, off, 1<<20, &v)
	}
	if d.dead() {
		d.t.Error("hvd ended while it was read from")
	}
	return v
}

// probe reads a range, and adds to v what of it cannot be read.
func (d *daemon) probe(c *nbdClient, want []byte, off, n int, v *verdict) {
	d.t.Helper()
	p := make([]byte, n)
	err := c.read(p, uint64(off))
	switch {
	case err == nil:
		d.equal(p, want[off:], off)
	case !errors.Is(err, errIO):
		d.t.Fatalf("read at %d: %v, want EIO", off, err)
	case n == 4096 || errors.Is(c.read(p[:4096], uint64(off)), errIO) && errors.Is(c.read(p[:4096], uint64(off+n-4096)), errIO):
		if v.lost == 0 {
			v.from = off
		}
		v.lost += n
	default:
		d.probe(c, want, off, n/2, v)
		d.probe(c, want, off+n/2, n/2, v)
	}
}

func (d *daemon) equal(got, want []byte, off int) {
	d.t.Helper()
	if want = want[:len(got)]; !bytes.Equal(got, want) {
		d.t.Fatalf("WRONG DATA at %d", off+differAt(got, want))
	}
}

// checkFinds wants the second reader to object, in the form of its documentation.
func (d *daemon) checkFinds() {
	d.t.Helper()
	if got := execute(d.t, nil, fabricPath, "store", "check", d.dir); got.code != 1 || got.stdout+got.stderr == "" {
		d.t.Errorf("store check ended with %d and says %q", got.code, got.stdout+got.stderr)
	}
}

// dead reports whether the daemon ended by itself.
func (d *daemon) dead() bool {
	select {
	case <-d.exited:
		return true
	default:
		return false
	}
}
