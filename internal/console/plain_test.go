package console

import (
	"strings"
	"testing"
)

// What others made cannot steer the terminal.
func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"zażółć — 日本 ok\n\tx":              "zażółć — 日本 ok\n\tx",
		"a\x1b[2Jb\x07\r\x7f":              `a\x1b[2Jb\x07\x0d\x7f`,
		"c1 \u009b31m, bad \xff, x":        `c1 \x9b31m, bad \ufffd, x`,
		"turned \u202egnp.exe\u2066\u200b": `turned \u202egnp.exe\u2066\u200b`,
	} {
		if got := Plain(in); got != want {
			t.Errorf("Plain(%q) = %q, want %q", in, got, want)
		}
	}
	var b strings.Builder
	Table(&b, func(string) string { return "" }, []string{"NAME"}, [][]string{{"x\x1b]0;title\x07\ny"}})
	Pairs(&b, [][2]string{{"na\x1b[1mme", "x\x1b[1m\ny"}})
	if strings.ContainsAny(b.String(), "\x1b\x07") || strings.Count(b.String(), "\n") != 3 {
		t.Errorf("printed %q", b.String())
	}
}
