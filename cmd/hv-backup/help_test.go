package main

import (
	"io"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/helptext"
)

// Every command shows how it is used.
func TestExamples(t *testing.T) {
	for _, command := range helptext.WithoutExample(newRoot(newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" }))) {
		t.Errorf("%s --help has no example", command)
	}
}
