package console

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// A table that is too wide keeps the first column whole; what it can do without goes first, and the last text is broken and not cut.
func TestTablesFit(t *testing.T) {
	widths := []int{8, 40, 10}
	fit(widths, 44)
	if total(widths) != 44 || widths[0] != 8 {
		t.Errorf("widths %v are %d together", widths, total(widths))
	}
	widths = []int{30, 9, 9}
	fit(widths, 5)
	if !slices.Equal(widths, []int{30, 8, 8}) {
		t.Errorf("widths %v: columns were cut below what can be read, or the first one was", widths)
	}
	if line := tableLine([]string{"a-very-long-name", "x"}, []int{8, 1}); line != "a-very-…  x" {
		t.Errorf("line %q", line)
	}
	table := func() ([]string, [][]string) {
		return []string{"NAME", "KIND", "TAGS", "TIME"}, [][]string{{"one", "volume", "", "2026-11-30 15:58:09"}, {"two", "files", "", "2026-11-30 15:58:10"}}
	}
	for _, c := range []struct {
		width int
		want  []string
	}{
		{80, []string{"NAME", "KIND", "TAGS", "TIME"}},
		{36, []string{"NAME", "KIND", "TIME"}},
		{32, []string{"NAME", "TIME"}},
		{10, []string{"NAME", "TIME"}},
	} {
		header, rows := table()
		if header, rows = leaveOut(header, rows, c.width, []string{"KIND", "NAME"}); !slices.Equal(header, c.want) || len(rows[1]) != len(c.want) || rows[1][0] != "two" {
			t.Errorf("in %d columns: %q %q, want %q", c.width, header, rows, c.want)
		}
	}
	widths = []int{4, 25, 60}
	fit(widths, 60)
	if !slices.Equal(widths, []int{4, 25, 27}) {
		t.Errorf("widths %v: the last column is not narrowed first", widths)
	}
	got := broken([]string{"disk", "only snapshots of one volume need-what-is-longer-than-a-line it"}, []int{4, 20})
	want := [][]string{{"disk", "only snapshots of"}, {"", "one volume"}, {"", "need-what-is-longer-than-a-line"}, {"", "it"}}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("broken into %q, want %q", got, want)
	}
	if line := tableLine(got[2], []int{4, 20}); line != "      need-what-is-longer-than-a-line" {
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
