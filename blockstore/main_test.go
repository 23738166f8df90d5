package blockstore

import (
	"os"
	"runtime/debug"
	"testing"
)

// testHeap is what the tests' heap takes before the collector works harder, bytes. Crash tests clone file systems in memory again and again, and without it as much again would lie around uncollected.
const testHeap = 768 << 20

func TestMain(m *testing.M) {
	debug.SetMemoryLimit(testHeap)
	os.Exit(m.Run())
}
