// Package helptext fits the help of a command to the terminal: descriptions and the texts of flags are broken at its width, examples and
// other indented lines stay as they are.
package helptext
