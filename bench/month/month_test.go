package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/bench/wire"
	"github.com/hyper-nixos/hyper-nixos/internal/nbdtest"
)

// tool skips a test without a program, or fails it where all must be there.
func tool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("HV_REQUIRE_TOOLS") != "" {
		t.Fatalf("%s is not installed; make setup installs it", name)
	}
	t.Skipf("%s is not installed", name)
}

// TestSync brings two disks, clones of one, through two days to exports of a server that is not ours.
func TestSync(t *testing.T) {
	const size = 3<<20 + 5*blockBytes
	dir := t.TempDir()
	disk := make([]byte, size)
	for i := range 200 {
		copy(disk[i*blockBytes:], bytes.Repeat([]byte{byte(i), 1}, blockBytes/2))
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// day syncs and returns the reports.
	day := func(n int, socket string, names ...string) []diskReport {
		t.Helper()
		var disks []string
		for _, name := range names {
			disks = append(disks, name+"="+filepath.Join(dir, name))
		}
		out, err := syncDay(t.Context(), dir, n, socket, disks)
		if err != nil {
			t.Fatal(err)
		}
		var reports []diskReport
		for line := range bytes.Lines(out) {
			var r diskReport
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatal(err)
			}
			reports = append(reports, r)
		}
		return reports
	}
	write("base", disk)
	if got := day(0, "-", "base"); got[0].NonZero != 200*blockBytes || got[0].Unique != 200*blockBytes {
		t.Fatalf("the first day is %+v", got)
	}

	// nbdkit shows the same memory, filled with what the clones began as, under every name.
	write("export", disk)
	socket := nbdtest.Nbdkit(t, "file", filepath.Join(dir, "export"))

	copy(disk[10*blockBytes:], bytes.Repeat([]byte("new"), 3*blockBytes/3)) // three blocks, all different
	clear(disk[20*blockBytes : 25*blockBytes])
	copy(disk[size-blockBytes:], disk[:blockBytes]) // known already
	write("one", disk)
	write("two", disk)
	before, err := os.ReadFile(filepath.Join(dir, "books"))
	if err != nil {
		t.Fatal(err)
	}
	got := day(1, socket, "one", "two")
	whole := sha256.Sum256(disk)
	want := diskReport{"one", 1, (200 - 5 + 1) * blockBytes, 4 * blockBytes, 3 * blockBytes, hex.EncodeToString(whole[:])}
	if got[0] != want {
		t.Errorf("one is %+v, want %+v", got[0], want)
	}
	if want.Name, want.Unique = "two", 0; got[1] != want {
		t.Errorf("two is %+v, want %+v", got[1], want)
	}
	conn, err := wire.Open(t.Context(), socket, "one")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	there := make([]byte, size)
	if err := conn.Do(wire.Read, 0, size, there); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(there, disk) {
		t.Error("the export is not what the disk is")
	}

	// Again, as after the end; then with the books of the day before, as if it had been killed before the end. Both say the same.
	for _, books := range [][]byte{nil, before} {
		if books != nil {
			write("books", books)
		}
		if again := day(1, socket, "one", "two"); again[0] != got[0] || again[1] != got[1] {
			t.Errorf("the same day once more is %+v, was %+v", again, got)
		}
	}
	if _, err := syncDay(t.Context(), dir, 3, "-", []string{"one=" + filepath.Join(dir, "one")}); err == nil {
		t.Error("a day may be left out")
	}
	write("books", before[:len(before)-1])
	if _, err := syncDay(t.Context(), dir, 1, "-", []string{"one=" + filepath.Join(dir, "one")}); err == nil {
		t.Error("books that were cut off are taken")
	}
}

// TestLoad looks whether the load is the same each time, other on other days, and what sqlite takes.
func TestLoad(t *testing.T) {
	made := func(write func(out *bufio.Writer)) string {
		var b strings.Builder
		out := bufio.NewWriter(&b)
		write(out)
		if err := out.Flush(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	logs := func(seed int64, day int) string {
		return made(func(out *bufio.Writer) { writeLogs(out, seed, day, 100000) })
	}
	rows := func(seed int64, day int) string { return made(func(out *bufio.Writer) { writeRows(out, seed, day) }) }
	if a := logs(1, 1); a != logs(1, 1) || a == logs(1, 2) || a == logs(2, 1) || len(a) < 100000 || len(a) > 101000 || strings.Contains(a, "%!") {
		t.Errorf("%d bytes of logs do not go by seed and day alone, or: %.300s", len(a), a)
	}
	if a := rows(1, 1); a != rows(1, 1) || a == rows(1, 2) || a == rows(2, 1) {
		t.Error("rows do not go by seed and day alone")
	}
	tool(t, "sqlite3")
	path := filepath.Join(t.TempDir(), "shop.db")
	for day := 1; day <= keptDays+2; day++ {
		shop := exec.Command("sqlite3", "-bail", path)
		shop.Stdin = strings.NewReader(rows(1, day))
		if out, err := shop.CombinedOutput(); err != nil {
			t.Fatalf("day %d: %v: %s", day, err, out)
		}
	}
	out, err := exec.Command("sqlite3", path, "select count(*) from orders; select count(*) from events; select count(*) from sessions; pragma integrity_check").Output()
	if want := "50000\n64000\n1500\nok\n"; err != nil || string(out) != want {
		t.Errorf("after ten days the shop has %q (%v), want %q", out, err, want)
	}
}
