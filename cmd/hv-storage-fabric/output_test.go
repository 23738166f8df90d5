package main

import (
	"strings"
	"testing"
)

// The flag --version prints what the command does, and a store without data has no ratios.
func TestVersionFlagAndEmptyRatios(t *testing.T) {
	d := startDaemon(t)
	for _, form := range []string{"table", "json"} {
		if flag, command := d.must("--version", "-o", form), d.must("version", "-o", form); flag != command {
			t.Errorf("--version prints %q, version %q", flag, command)
		}
	}
	if stats := d.must("store", "stats"); !strings.Contains(stats, "(dedup -)") || !strings.Contains(stats, "(compression -)") {
		t.Errorf("an empty store has ratios: %s", stats)
	}
}
