package crew

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestCrew has many jobs wait for each other, so that they must run at the same time, several times over; then no more goroutines stay than were asked for, and none after Close.
func TestCrew(t *testing.T) {
	before := runtime.NumGoroutine()
	const most, jobs = 5, 50
	var met, done sync.WaitGroup
	c := New(most, func(out *int) {
		met.Done()
		met.Wait()
		*out++
		done.Done()
	})
	counts := make([]int, jobs)
	for range 20 {
		met.Add(jobs)
		done.Add(jobs)
		for i := range counts {
			c.Go(&counts[i])
		}
		done.Wait()
	}
	for i, n := range counts {
		if n != 20 {
			t.Errorf("job %d was done %d times of 20", i, n)
		}
	}
	settles(t, before+most)
	c.Close()
	c.Close()
	settles(t, before)

	met.Add(1)
	done.Add(1)
	c.Go(&counts[0])
	done.Wait()
	if counts[0] != 21 {
		t.Error("a job given after Close was not done")
	}
	settles(t, before)
}

// settles waits until there are no more goroutines than that.
func settles(t *testing.T, most int) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); runtime.NumGoroutine() > most; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, at most %d expected", runtime.NumGoroutine(), most)
		}
	}
}
