package check

import (
	"context"
	"testing"
)

// checkCrashed checks a copy that was made while the store was open. Files do not come from one moment, as a copy takes time: the test pauses nothing. What may be off then
// is what is newer in one file than in another, so a copy is repeated until nothing changed while it was made.
func checkCrashed(t *testing.T, dir, when string) {
	t.Helper()
	dir = steadyCopy(t, dir)
	rep, err := Run(context.Background(), dir, Options{})
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if rep.Errors > 0 {
		for i := range rep.Findings {
			t.Log(rep.Findings[i].String())
		}
		t.Fatalf("%s: %d errors", when, rep.Errors)
	}
}

// steadyCopy copies a directory that is in use until two copies in a row are the same.
func steadyCopy(t *testing.T, dir string) string {
	t.Helper()
	last, lastSum := "", ""
	for range 50 {
		next := copyStore(t, dir)
		sum := treeSum(t, next)
		if sum == lastSum {
			return last
		}
		last, lastSum = next, sum
	}
	t.Skip("the store never came to rest while it was copied")
	return ""
}
