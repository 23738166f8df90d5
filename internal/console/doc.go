// Package console is what the commands have in common when they talk to people and scripts: tables that fit the terminal, meters of what takes long, JSON. Colour and lines that
// overwrite themselves are for terminals only.
package console
