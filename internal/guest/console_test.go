package guest

import (
	"fmt"
	"strings"
	"testing"
	"testing/iotest"
)

func TestHasMarker(t *testing.T) {
	for _, c := range []struct {
		line, marker string
		want         bool
	}{
		{"SYNCED 2", "SYNCED 2", true},
		{"SYNCED 20", "SYNCED 2", false},
		{"[    2.1] virtio SYNCED 2", "SYNCED 2", true},
		{"SYNCED 20 SYNCED 2", "SYNCED 2", true},
		{"GUEST-READY task=idle", "GUEST-READY", true},
		{"", "x", false},
	} {
		if got := hasMarker(c.line, c.marker); got != c.want {
			t.Errorf("hasMarker(%q, %q) = %v", c.line, c.marker, got)
		}
	}
}

// TestConsoleLines feeds one byte at a time, as a slow serial line does.
func TestConsoleLines(t *testing.T) {
	c := newConsole()
	c.readFrom(iotest.OneByteReader(strings.NewReader("one\r\ntwo\nthree")))
	lines, next, ended, _ := c.since(0)
	if fmt.Sprint(lines) != "[one two three]" || next != 3 || !ended {
		t.Errorf("got %q, next %d, ended %v", lines, next, ended)
	}
	if lines, _, _, _ := c.since(2); fmt.Sprint(lines) != "[three]" {
		t.Errorf("since 2: got %q", lines)
	}
}

// TestConsoleIsBounded checks that a guest that never stops talking costs a fixed amount, and that line numbers go on.
func TestConsoleIsBounded(t *testing.T) {
	c := newConsole()
	line := []byte(strings.Repeat("x", 1023) + "\n")
	const lines = 2 * maxConsole / 1024
	for range lines {
		c.add(line, false)
	}
	if size := len(c.text()); size > maxConsole {
		t.Errorf("kept %d bytes, want at most %d", size, maxConsole)
	}
	c.add([]byte("last\n"), false)
	if got, next, _, _ := c.since(lines); fmt.Sprint(got) != "[last]" || next != lines+1 {
		t.Errorf("since %d: got %d lines, next %d", lines, len(got), next)
	}
	c = newConsole()
	for range 5 * maxConsole / 1024 {
		c.add(line[:1023], false)
	}
	if size := len(c.text()); size > maxConsole+maxLine {
		t.Errorf("an endless line: kept %d bytes, want at most %d", size, maxConsole)
	}
}
