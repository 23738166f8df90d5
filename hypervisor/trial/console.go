package trial

import (
	"io"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	maxLine   = 4096 // bytes, where a line that does not end is cut
	tailLines = 20   // that are kept
)

// hopeless is what a guest says, at the beginning of a line or wherever the pattern says, that will not come up any more.
var hopeless = []struct {
	sign *regexp.Regexp
	why  string
}{
	{regexp.MustCompile(`^No bootable device`), "the BIOS finds nothing on it that it can boot (UEFI might)"},
	{regexp.MustCompile(`BdsDxe: No bootable option`), "the firmware finds nothing on it that it can boot"},
	{regexp.MustCompile(`^(grub rescue>|error: unknown filesystem)`), "its boot loader does not find its own files"},
	{regexp.MustCompile(`Kernel panic - not syncing`), "its kernel panics"},
	{regexp.MustCompile(`^\(initramfs\)|Entering emergency mode|You are in emergency mode|^Give root password for maintenance|ALERT! .* does not exist`), "it stops in emergency mode"},
}

// line is one of the console, maybe without its end yet.
type line struct {
	text  string
	whole bool
}

// screen makes lines of what a serial console sends: without what steers terminals, and each at most maxLine long. Where the cursor is put somewhere else, or the screen is cleared, a line ends.
type screen struct {
	partial []byte
	escape  []byte // a sequence that has not ended yet
}

// maxEscape is where a sequence is taken for text that is left out.
const maxEscape = 64 // bytes

// add returns the lines that p ends, and the one that it begins.
func (s *screen) add(p []byte) (lines []line) {
	end := func() {
		if len(s.partial) > 0 {
			lines = append(lines, line{clean(s.partial), true})
			s.partial = s.partial[:0]
		}
	}
	for _, c := range p {
		switch {
		case len(s.escape) > 0:
			s.escape = append(s.escape, c)
			if last, done := endOfEscape(s.escape); done {
				if strings.IndexByte("HfJcEd", last) >= 0 {
					end()
				}
				s.escape = s.escape[:0]
			}
		case c == 0x1b:
			s.escape = append(s.escape, c)
		case c == '\n' || c == '\r':
			end()
		case c >= ' ' && c != 0x7f || c == '\t':
			if s.partial = append(s.partial, c); len(s.partial) >= maxLine {
				end()
			}
		}
	}
	if len(s.partial) > 0 {
		lines = append(lines, line{clean(s.partial), false})
	}
	return lines
}

// endOfEscape reports whether a sequence, which begins with an escape, has ended, and with what.
func endOfEscape(e []byte) (last byte, done bool) {
	last = e[len(e)-1]
	switch {
	case len(e) == 1:
		return 0, false
	case len(e) == 2:
		return last, strings.IndexByte("[]()#P", last) < 0
	case len(e) >= maxEscape:
		return 0, true
	case e[1] == '[':
		return last, last >= 0x40 && last <= 0x7e
	case e[1] == ']' || e[1] == 'P': // until a bell, or the escape of ESC \
		return 0, last == 7 || last == 0x1b
	}
	return 0, true // a character set
}

func clean(p []byte) string {
	if utf8.Valid(p) {
		return string(p)
	}
	return strings.ToValidUTF8(string(p), "?")
}

// tail keeps the last lines.
type tail []string

func (t *tail) add(text string) {
	if strings.TrimSpace(text) == "" {
		return
	}
	if len(*t) >= tailLines {
		*t = append((*t)[:0], (*t)[1:]...)
	}
	*t = append(*t, strings.TrimRight(text, " "))
}

// read hands each piece of the console to found until r ends.
func read(r io.Reader, found func(lines []line)) {
	var s screen
	buffer := make([]byte, 16<<10)
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			found(s.add(buffer[:n]))
		}
		if err != nil {
			return
		}
	}
}
