package console

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// UsageError is a command line that makes no sense.
type UsageError struct{ Err error }

// Error says what is wrong.
func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef returns a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// FlagError is a UsageError of what the parser of flags says, in plain words of numbers that are none.
func FlagError(_ *cobra.Command, err error) error {
	var number *strconv.NumError
	if !errors.As(err, &number) {
		return &UsageError{Err: err}
	}
	want := "want a number"
	switch {
	case errors.Is(number, strconv.ErrRange):
		want = "it is too large, or too small"
	case number.Func == "ParseUint":
		want = "want a whole number, 0 or more"
	case number.Func == "ParseInt", number.Func == "Atoi":
		want = "want a whole number"
	case number.Func == "ParseBool":
		want = "want true or false"
	}
	return Usagef("%s", strings.Replace(err.Error(), number.Error(), want, 1))
}

// VersionFlag lets --version do what the command version does.
func VersionFlag(root, version *cobra.Command) {
	asked := root.Flags().Bool("version", false, "print the version of this command")
	otherwise := root.RunE
	root.RunE = func(c *cobra.Command, args []string) error {
		if *asked && len(args) == 0 {
			return version.RunE(c, args)
		}
		return otherwise(c, args)
	}
}

// meant names the commands that an unknown word is nearly, if there are few.
func meant(c *cobra.Command, word string) string {
	c.SuggestionsMinimumDistance = 2 // letters that differ
	near := c.SuggestionsFor(word)
	if len(near) == 0 || len(near) > 3 {
		return ""
	}
	return "; did you mean " + strings.Join(near, " or ") + "?"
}

// Group makes a command that only holds others: alone it shows its help, with an unknown word it is wrong usage.
func Group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return Usagef("unknown command %q for %q%s", args[0], c.CommandPath(), meant(c, args[0]))
	}
	return c
}

// Exactly wants that many arguments; names are for the message. Without names none is allowed.
func Exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(names) == 0 && len(args) > 0 {
			return Usagef("%s takes no arguments, got %q", c.CommandPath(), args[0])
		}
		if len(args) != len(names) {
			return Usagef("%s needs %s, got %s", c.CommandPath(), strings.Join(names, " and "), Counted(len(args), "argument"))
		}
		return nil
	}
}

// Between wants from least to most arguments; name is for the message.
func Between(least, most int, name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return Usagef("%s takes %d to %d of %s, got %s", c.CommandPath(), least, most, name, Counted(len(args), "argument"))
		}
		return nil
	}
}

// Counted is a number and its noun.
func Counted[N int | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
