package main

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

// show prints one result: as JSON, or as text by calling table.
func (a *app) show(value any, table func()) error {
	if a.output != "json" {
		table()
		return nil
	}
	return console.JSON(a.out, value)
}

// say prints a line for people; with -o json the document says it all.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) }

// table prints rows under a header.
func (a *app) table(header []string, rows [][]string, spare ...string) {
	console.Table(a.out, a.getenv, header, rows, spare...)
}

// pairs prints names and values under each other.
func (a *app) pairs(list [][2]string) { console.Pairs(a.out, list) }

// newMeter is silent when the error stream is no terminal, unless forced.
func (a *app) newMeter(what string, total uint64, forced bool) *console.Meter {
	return console.NewMeter(a.err, what, total, forced)
}
