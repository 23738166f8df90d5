package helptext

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

func TestWrap(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"short", "one two", "one two"},
		{"long", "one two three four", "one two\nthree four"},
		{"lines of a paragraph are joined", "one\ntwo\nthree", "one two\nthree"},
		{"paragraphs stay apart", "one\n\ntwo", "one\n\ntwo"},
		{"indented lines are kept", "one:\n\tcommand --with many words\ntwo", "one:\n\tcommand --with many words\ntwo"},
		{"a long word", "a incomprehensible b", "a\nincomprehensible\nb"},
		{"columns, not bytes", "äöü äöü äöü", "äöü äöü\näöü"},
		{"empty", "", ""},
	} {
		if got := wrap(c.text, 10); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestFitKeepsHelpWithinItsWidth(t *testing.T) {
	words := strings.TrimSpace(strings.Repeat("word ", 60))
	root := &cobra.Command{Use: "root", Long: words}
	root.PersistentFlags().String("everywhere", "", words)
	child := &cobra.Command{Use: "child", Long: words, Run: func(*cobra.Command, []string) {}}
	child.Flags().String("here", "", words)
	root.AddCommand(child)
	var out bytes.Buffer
	root.SetOut(&out)
	Fit(root)
	root.SetArgs([]string{"child", "--help"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Count(out.String(), "word"), 180; got != want {
		t.Errorf("%d words of the help, want %d", got, want)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > most {
			t.Errorf("line of %d columns: %s", n, line)
		}
	}
}
