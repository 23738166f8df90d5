package console

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

const (
	drawEvery = 200 * time.Millisecond // on a terminal
	lineEvery = 5 * time.Second        // elsewhere, when it is asked for
)

// Meter tells how far something is. It is used by one goroutine.
type Meter struct {
	What  string // is done
	Total uint64 // bytes; 0: not known
	Also  string // said behind the figures, if it is not empty
	Lines bool   // of JSON instead, as Event says, for programs

	w        io.Writer
	start    time.Time
	last     time.Time
	terminal bool
	silent   bool
	drawn    int // runes of the line on the terminal
}

// NewMeter returns a meter of total bytes, 0 if that is not known, which is silent when w is no terminal, unless forced.
func NewMeter(w io.Writer, what string, total uint64, forced bool) *Meter {
	_, isTerminal := Terminal(w)
	now := time.Now()
	return &Meter{w: w, What: what, Total: total, start: now, last: now, terminal: isTerminal, silent: !isTerminal && !forced}
}

// At notes that done bytes are through.
func (m *Meter) At(done uint64) {
	every := lineEvery
	if m.terminal {
		every = drawEvery
	}
	now := time.Now()
	if m.silent || now.Sub(m.last) < every {
		return
	}
	m.last = now
	if m.Lines {
		m.event(done, now.Sub(m.start))
		return
	}
	line := m.line(done, now.Sub(m.start))
	if m.Also != "" {
		line += ", " + m.Also
	}
	if !m.terminal {
		fmt.Fprintln(m.w, line)
		return
	}
	blank := max(0, m.drawn-len([]rune(line)))
	m.drawn = len([]rune(line))
	fmt.Fprintf(m.w, "\r%s%s", line, strings.Repeat(" ", blank))
}

// Event is a line of JSON that tells a program how far something is.
type Event struct {
	Event       string  `json:"event"` // "progress"
	What        string  `json:"what"`
	DoneBytes   uint64  `json:"doneBytes"`
	TotalBytes  uint64  `json:"totalBytes,omitempty"` // if it is known
	BytesPerSec float64 `json:"bytesPerSecond"`
	SecondsLeft float64 `json:"secondsLeft,omitempty"` // if the total is known
	Also        string  `json:"also,omitempty"`
}

func (m *Meter) event(done uint64, elapsed time.Duration) {
	e := Event{Event: "progress", What: m.What, DoneBytes: done, TotalBytes: m.Total, BytesPerSec: float64(done) / max(elapsed.Seconds(), 1e-3), Also: m.Also}
	if m.Total > done && e.BytesPerSec > 0 {
		e.SecondsLeft = float64(m.Total-done) / e.BytesPerSec
	}
	text, err := json.Marshal(e)
	if err == nil {
		fmt.Fprintln(m.w, string(text))
	}
}

// line is "importing 1.20 GiB of 3.00 GiB (40 %), 512 MiB/s, 4s left".
func (m *Meter) line(done uint64, elapsed time.Duration) string {
	rate := float64(done) / max(elapsed.Seconds(), 1e-3)
	line := fmt.Sprintf("%s %s", m.What, units.Size(done).Human())
	if m.Total > 0 {
		line += fmt.Sprintf(" of %s (%d %%)", units.Size(m.Total).Human(), uint64(100*float64(done)/float64(m.Total)))
	}
	line += fmt.Sprintf(", %s/s", units.Size(rate).Human())
	if m.Total > done && rate > 0 {
		left := time.Duration(float64(m.Total-done) / rate * float64(time.Second))
		line += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	return line
}

// End leaves the terminal with an empty line.
func (m *Meter) End() {
	if m.drawn > 0 {
		fmt.Fprintf(m.w, "\r%s\r", strings.Repeat(" ", m.drawn))
	}
}
