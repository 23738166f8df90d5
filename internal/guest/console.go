package guest

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"sync"
)

// maxConsole bounds the serial output that is kept; a guest that prints more loses its oldest lines.
const maxConsole = 4 << 20

// maxLine is where a line that does not end is cut.
const maxLine = 64 << 10

// console collects the serial output of one guest and wakes those who wait for a line of it.
type console struct {
	mu struct {
		sync.Mutex
		partial []byte        // the line that has no end yet
		lines   []string      // whole lines, without their ends
		dropped int           // lines that were forgotten to stay within maxConsole
		size    int           // bytes of lines
		changed chan struct{} // closed and replaced whenever a line arrives or the output ends
		ended   bool
	}
}

func newConsole() *console {
	c := &console{}
	c.mu.changed = make(chan struct{})
	return c
}

// readFrom takes lines from r until it ends. It is the body of the console's one goroutine.
func (c *console) readFrom(r io.Reader) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := r.Read(buffer)
		c.add(buffer[:n], err != nil)
		if err != nil {
			return
		}
	}
}

func (c *console) add(data []byte, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.partial = append(c.mu.partial, data...)
	for {
		line, rest, found := bytes.Cut(c.mu.partial, []byte("\n"))
		if !found && len(line) < maxLine && (!ended || len(line) == 0) {
			break
		}
		c.mu.lines = append(c.mu.lines, strings.TrimRight(string(line), "\r"))
		c.mu.size += len(line) + 1
		c.mu.partial = rest
	}
	for c.mu.size > maxConsole {
		c.mu.size -= len(c.mu.lines[0]) + 1
		c.mu.lines = c.mu.lines[1:]
		c.mu.dropped++
	}
	c.mu.ended = c.mu.ended || ended
	close(c.mu.changed)
	c.mu.changed = make(chan struct{})
}

// since returns the lines from index on (counted from the boot), the index after them, whether the output has ended, and a
// channel that is closed when any of that changes. The lines must not be changed.
func (c *console) since(index int) (lines []string, next int, ended bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	skip := min(max(index-c.mu.dropped, 0), len(c.mu.lines))
	return c.mu.lines[skip:len(c.mu.lines):len(c.mu.lines)], c.mu.dropped + len(c.mu.lines), c.mu.ended, c.mu.changed
}

// text returns all that is kept, the line that has no end yet included.
func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := strings.Join(c.mu.lines, "\n")
	if len(c.mu.lines) > 0 {
		all += "\n"
	}
	return all + string(c.mu.partial)
}

// hasMarker reports whether line contains marker as whole words, so "SYNCED 2" is not found in "SYNCED 20".
// It may be in the middle: the kernel's own messages can share a line with those of a program.
func hasMarker(line, marker string) bool {
	for rest := line; ; {
		_, after, found := strings.Cut(rest, marker)
		if !found {
			return false
		}
		if after == "" || after[0] == ' ' {
			return true
		}
		rest = after
	}
}

// syncedNumber returns the n of a line "SYNCED n".
func syncedNumber(line string) (n int, ok bool) {
	_, text, found := strings.Cut(line, "SYNCED ")
	if !found {
		return 0, false
	}
	digits, _, _ := strings.Cut(text, " ")
	n, err := strconv.Atoi(digits)
	return n, err == nil
}

// isErrorLine reports whether the guest, or its kernel, says that something went wrong with the disk.
func isErrorLine(line string) bool {
	for _, sign := range []string{"GUEST-ERROR", "I/O error", "EXT4-fs error", "EXT4-fs warning", "Aborting journal", "Kernel panic"} {
		if strings.Contains(line, sign) {
			return true
		}
	}
	return false
}
