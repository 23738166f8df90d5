package helptext

import "github.com/spf13/cobra"

// WithoutExample returns the paths of the commands under root that do something and whose help shows no example of it, for tests. Commands that only hold others, hidden ones and those of cobra itself are left out.
func WithoutExample(root *cobra.Command) (paths []string) {
	for _, c := range root.Commands() {
		switch {
		case c.Hidden || c.Name() == "help" || c.Name() == "completion":
		case c.HasSubCommands():
			paths = append(paths, WithoutExample(c)...)
		case c.Example == "":
			paths = append(paths, c.CommandPath())
		}
	}
	return paths
}
