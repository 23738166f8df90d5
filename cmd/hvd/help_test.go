package main

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/helptext"
)

// Every command shows how it is used.
func TestExamples(t *testing.T) {
	for _, command := range helptext.WithoutExample(newRoot()) {
		t.Errorf("%s --help has no example", command)
	}
}
