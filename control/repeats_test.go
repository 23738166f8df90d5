package control

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A fault that background work meets again and again is logged at once, and then once a minute, with a count.
func TestRepeatedErrorsAreHeldBack(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1700000000, 0)
	events := engineEvents(slog.New(slog.NewTextHandler(&out, nil)), &Alarms{}, func() time.Time { return now })
	lines := func() []string {
		defer out.Reset()
		return strings.Split(strings.TrimSpace(out.String()), "\n")
	}
	for range 500 { // twice a second for over four minutes
		events.BackgroundError("destage", errors.New("table 7 is damaged"))
		events.Corruption(errors.New("table 7 is damaged"))
		now = now.Add(500 * time.Millisecond)
	}
	got := lines()
	if len(got) != 10 {
		t.Fatalf("%d lines, want 5 of each:\n%s", len(got), strings.Join(got, "\n"))
	}
	if strings.Contains(got[0], "heldBack") || !strings.Contains(got[2], "heldBack=119") {
		t.Errorf("first and second time:\n%s\n%s", got[0], got[2])
	}
	events.BackgroundError("destage", errors.New("table 8 is damaged"))
	events.BackgroundError("background work", errors.New("table 7 is damaged"))
	if got := lines(); len(got) != 2 {
		t.Errorf("what is new is not told at once:\n%s", strings.Join(got, "\n"))
	}
	r := newRepeats(func() time.Time { return now })
	for i := range 10 * maxRepeats {
		if tell, _ := r.tell(fmt.Sprint(i)); !tell || len(r.known) > maxRepeats {
			t.Fatalf("event %d: told %v, %d are remembered", i, tell, len(r.known))
		}
	}
}
