package console

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTablesFit(t *testing.T) {
	widths := []int{40, 8, 10}
	fit(widths, 44)
	if total := widths[0] + widths[1] + widths[2] + 2*columnGap; total != 44 {
		t.Errorf("widths %v are %d together", widths, total)
	}
	widths = []int{9, 9, 9}
	fit(widths, 5)
	if !slices.Equal(widths, []int{8, 8, 8}) {
		t.Errorf("widths %v: columns were cut below what can be read", widths)
	}
	if line := tableLine([]string{"a-very-long-name", "x"}, []int{8, 1}); line != "a-very-…  x" {
		t.Errorf("line %q", line)
	}
}

func TestMeter(t *testing.T) {
	m := &Meter{What: "importing", Total: 3 << 30}
	if got, want := m.line(1<<30, 2*time.Second), "importing 1.00 GiB of 3.00 GiB (33 %), 512 MiB/s, 4s left"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var out strings.Builder
	quiet := NewMeter(&out, "importing", 0, false)
	quiet.last = time.Time{}
	quiet.At(1)
	quiet.End()
	if out.Len() > 0 {
		t.Errorf("not quiet where there is no terminal: %q", out.String())
	}
	loud := NewMeter(&out, "importing", 0, true)
	loud.last = time.Time{}
	loud.Also = "0 B new"
	loud.At(1)
	if !strings.HasPrefix(out.String(), "importing 1 B, ") || !strings.HasSuffix(out.String(), ", 0 B new\n") {
		t.Errorf("with --progress: %q", out.String())
	}
}

// For programs a meter tells events as lines of JSON.
func TestMeterLines(t *testing.T) {
	var b strings.Builder
	m := NewMeter(&b, "copying", 1000, true)
	m.Lines, m.Also = true, "3 new"
	m.event(250, time.Second)
	var e Event
	if err := json.Unmarshal([]byte(b.String()), &e); err != nil || e != (Event{"progress", "copying", 250, 1000, 250, 3, "3 new"}) {
		t.Errorf("%q, %v", b.String(), err)
	}
}
