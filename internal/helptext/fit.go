package helptext

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// Columns that help has where it goes to no terminal, and at most: longer lines are hard to read. Below the least it is not squeezed.
const (
	most  = 100
	least = 60
)

// known tells cobra, which has one table for all commands, what the templates call.
var known = sync.OnceFunc(func() {
	cobra.AddTemplateFunc("wrapText", func(width int, text string) string { return wrap(text, width) })
	cobra.AddTemplateFunc("wrapFlags", func(width int, f *pflag.FlagSet) string { return f.FlagUsagesWrapped(width) })
})

// Fit makes the help of root and of all commands under it as wide as the terminal that root writes to. The output of root is set before.
func Fit(root *cobra.Command) {
	known()
	width := columns(root.OutOrStdout())
	usage := root.UsageTemplate()
	for _, flags := range []string{".LocalFlags", ".InheritedFlags"} {
		usage = strings.ReplaceAll(usage, flags+".FlagUsages", fmt.Sprintf("wrapFlags %d %s", width, flags))
	}
	root.SetUsageTemplate(usage)
	root.SetHelpTemplate(strings.Replace(root.HelpTemplate(), "{{. | trimTrailingWhitespaces}}", fmt.Sprintf("{{wrapText %d . | trimTrailingWhitespaces}}", width), 1))
}

// columns returns the width of help that goes to out.
func columns(out any) int {
	f, ok := out.(*os.File)
	if !ok {
		return most
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return most
	}
	return min(max(width, least), most)
}
