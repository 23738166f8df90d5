package e2e

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func bytesText(n uint64) string { return strconv.FormatUint(n, 10) }

func TestUnknownExport(t *testing.T) {
	needs(t, "nbdinfo", "qemu-io")
	d := startDaemon(t)
	d.run("volume", "create", "detached", "--size", "1MiB")
	w := d.watch()
	for _, name := range []string{"nosuch", "detached", "", "..", "../witness", "witness/", "WITNESS", strings.Repeat("n", 300)} {
		var refused *optionError
		if c, err := dialNBD(d.nbdSocket(), name); err == nil {
			t.Errorf("export %q was opened", name)
			c.conn.Close()
		} else if !errors.As(err, &refused) || refused.reply != repErrUnknown {
			t.Errorf("export %q: %v, want NBD_REP_ERR_UNKNOWN", name, err)
		}
	}
	if got := tryTool(t, "nbdinfo", d.uri("nosuch")); got.code == 0 || !strings.Contains(got.stderr, "No such file") {
		t.Errorf("nbdinfo: %+v", got)
	}
	if got := tryTool(t, "qemu-io", "-f", "raw", "-c", "read 0 512", d.uri("nosuch")); got.code == 0 || !strings.Contains(got.stderr+got.stdout, "nosuch") {
		t.Errorf("qemu-io: %+v", got)
	}
	d.refuses(3, []string{"nosuch", "volume list"}, "volume", "attach", "nosuch")
	d.refuses(3, []string{"nosuch"}, "volume", "export", "nosuch", filepath.Join(t.TempDir(), "x"))
	d.refuses(3, []string{"nosuch"}, "volume", "export", "witness@nosuch", filepath.Join(t.TempDir(), "x"))
	w.testify()
}

func TestSizesThatCannotBe(t *testing.T) {
	d := startDaemon(t)
	w := d.watch()
	d.run("volume", "create", "v", "--size", "1MiB")
	for _, c := range []struct{ size, says string }{
		{"0", "512"}, {"511", "512"}, {"1000", "1024"}, {"1048577", "1049088"}, {"8EiB", "largest"}, {"9223372036854775808", "largest"},
		{"18446744073709551615", "largest"}, {"18446744073709551616", "size"}, {"-1", "-1"}, {"1.5", "1.5"}, {"lots", "lots"}, {"", "size"},
	} {
		d.refuses(2, []string{c.says}, "volume", "create", "bad", "--size="+c.size)
		d.refuses(2, []string{c.says}, "volume", "resize", "v", "--shrink", "--size="+c.size)
	}
	d.refuses(2, []string{"size"}, "volume", "create", "bad")
	d.refuses(4, []string{"--shrink"}, "volume", "resize", "v", "--size", "512")
	if names := d.volumes(); len(names) != 2 {
		t.Errorf("volumes are %q", names)
	}
	w.testify()
}

// TestSizesAtTheEdge makes the least, the largest and an odd volume, and writes to their last sectors.
func TestSizesAtTheEdge(t *testing.T) {
	d := startDaemon(t)
	const largest = 8<<60 - 16<<20
	for name, size := range map[string]uint64{"least": 512, "odd": 5<<20 + 512, "largest": largest} {
		d.disk(name, bytesText(size))
		c := openNBD(t, d.nbdSocket(), name)
		if c.size != size {
			t.Errorf("%s has %d bytes, want %d", name, c.size, size)
		}
		data, back := randomBytes(1, 512), make([]byte, 512)
		if err := errors.Join(c.write(data, size-512), c.flush()); err != nil {
			t.Errorf("write the last sector of %s: %v", name, err)
		}
		d.settle()
		if err := c.read(back, size-512); err != nil || string(back) != string(data) {
			t.Errorf("read the last sector of %s: %v", name, err)
		}
		if err := c.write(data, size); !errors.Is(err, errNoSpace) {
			t.Errorf("write behind the end of %s: %v, want ENOSPC", name, err)
		}
		if err := c.write(data, size-256); !errors.Is(err, errNoSpace) {
			t.Errorf("write across the end of %s: %v, want ENOSPC", name, err)
		}
		if err := c.read(back, size-256); !errors.Is(err, errInvalid) {
			t.Errorf("read across the end of %s: %v, want EINVAL", name, err)
		}
		if err := c.read(back, 1<<64-512); !errors.Is(err, errInvalid) {
			t.Errorf("read at the end of all numbers: %v, want EINVAL", err)
		}
		if err := c.trim(0, int(min(size, 1<<32-512))); err != nil {
			t.Errorf("trim %s: %v", name, err)
		}
	}
}

func TestNamesThatCannotBe(t *testing.T) {
	d := startDaemon(t)
	w := d.watch()
	outside := filepath.Join(d.dir, "..", "hv-e2e-outside")
	d.run("volume", "create", "v", "--size", "1MiB")
	d.run("snapshot", "create", "v@s")
	input := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(input, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", ".hidden", "-dash", "a/b", "../hv-e2e-outside", "/etc/passwd", "a@b", "a b", "a\nb", "a\x1b[31mb", "a\x00b"[:1] + "\x7f", "ü", "\xff\xfe",
		"a%2fb", strings.Repeat("n", 129), strings.Repeat("n", 300), "a\\b", "a:b", "$(reboot)", "CON\r"} {
		for _, args := range [][]string{
			{"volume", "create", "--size", "1MiB", "--", name}, {"volume", "rename", "--", "v", name}, {"volume", "clone", "--", "v@s", name}, {"volume", "import", "--", name, input},
			{"snapshot", "create", "--", "v", name}, {"token", "create", "--scope", "read", "--", name},
		} {
			d.refuses(2, []string{"name"}, args...)
		}
	}
	if _, err := os.Stat(outside); err == nil {
		t.Error("a name made a file outside")
	}
	if names := d.volumes(); strings.Join(names, " ") != "v witness" {
		t.Errorf("volumes are %q", names)
	}
	d.run("volume", "create", strings.Repeat("n", 128), "--size", "1MiB")
	w.testify()
}

// volumes lists names.
func (d *daemon) volumes() (names []string) {
	d.t.Helper()
	var list []struct{ Name string }
	d.json(&list, "volume", "list")
	for _, v := range list {
		names = append(names, v.Name)
	}
	return names
}

// TestRefusals asks for what makes sense but must not be done.
func TestRefusals(t *testing.T) {
	d := startDaemon(t)
	w := d.watch()
	d.run("volume", "create", "v", "--size", "1MiB")
	d.run("snapshot", "create", "v@s")
	d.run("volume", "clone", "v@s", "c")
	for _, c := range []struct {
		code int
		says []string
		args []string
	}{
		{4, []string{"witness"}, []string{"volume", "delete", "witness", "--yes"}},
		{4, []string{"witness", "--force"}, []string{"volume", "detach", "witness"}},
		{4, []string{"witness"}, []string{"volume", "rename", "witness", "w"}},
		{4, []string{"--yes"}, []string{"volume", "delete", "c"}},
		{4, []string{"v", "another name"}, []string{"volume", "create", "v", "--size", "1MiB"}},
		{4, []string{"s"}, []string{"snapshot", "create", "v@s"}},
		{3, []string{"nosuch"}, []string{"snapshot", "rollback", "v@nosuch"}},
		{3, []string{"v"}, []string{"volume", "detach", "v"}},
		{2, []string{"fixed"}, []string{"volume", "create", "x", "--size", "1MiB", "--chunking", "fixed:5KiB"}},
		{2, []string{"mode"}, []string{"volume", "create", "x", "--size", "1MiB", "--mode", "careless"}},
		{2, []string{"owner"}, []string{"volume", "attach", "v", "--owner", "nobody"}},
		{2, []string{"nosuchuser"}, []string{"volume", "attach", "v", "--socket-per-volume", "--owner", "nosuchuser"}},
		{2, []string{"0999"}, []string{"volume", "attach", "v", "--socket-per-volume", "--mode", "0999"}},
		{2, []string{"frobnicate"}, []string{"volume", "frobnicate"}},
	} {
		d.refuses(c.code, c.says, c.args...)
	}
	w.testify()
	got := execute(t, nil, fabricPath, "--endpoint", "unix:"+d.dir+"/none.sock", "volume", "list")
	d.mustRefuse(got, 6, []string{"none.sock", "start hvd", "--endpoint"}, "no daemon")
}

// TestImportThatEndsEarly gives a pipe less than --size, and one with more: no volume is left.
func TestImportThatEndsEarly(t *testing.T) {
	d := startDaemon(t)
	w := d.watch()
	half := io.LimitReader(&repeater{randomBytes(5, 1<<20)}, 20<<20)
	got := d.tryWith(half, "volume", "import", "cut", "-", "--size", "40MiB")
	d.mustRefuse(got, 1, []string{"cut", "20971520", "41943040"}, "import of a pipe that ends early")
	got = d.tryWith(io.LimitReader(&repeater{randomBytes(5, 1<<20)}, 20<<20), "volume", "import", "cut", "-", "--size", "10MiB")
	d.mustRefuse(got, 1, []string{"cut"}, "import of a pipe that goes on")
	if names := d.volumes(); strings.Join(names, " ") != "witness" {
		t.Errorf("volumes are %q", names)
	}
	d.settle()
	w.testify()
	var stats struct{ StoredBytes uint64 }
	d.run("volume", "detach", "--force", "witness")
	d.run("volume", "delete", "witness", "--yes")
	d.settle()
	d.json(&stats, "store", "stats")
	if stats.StoredBytes != 0 {
		t.Errorf("%d B are stored for nothing", stats.StoredBytes)
	}
	d.kill()
	d.start()
	if names := d.volumes(); len(names) != 0 {
		t.Errorf("after a restart there are volumes %q", names)
	}
}

// repeater is an endless stream.
type repeater struct{ p []byte }

func (r *repeater) Read(p []byte) (int, error) { return copy(p, r.p), nil }
