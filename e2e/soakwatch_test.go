package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// soakSample is what hvd uses at a moment.
type soakSample struct {
	anonymous  int64 // bytes
	ofStore    int   // open files of the store: log, segments, metadata
	others     int   // all else that is open, such as sockets
	goroutines int
}

// soakWatch takes samples of hvd while a soak runs.
type soakWatch struct {
	d      *daemon
	ask    *http.Client
	cancel context.CancelFunc
	ended  chan struct{}

	mu      sync.Mutex // held while a sample is taken, and while hvd is down
	samples []soakSample
	err     error
}

const soakSampleEvery = 500 * time.Millisecond

func newSoakWatch(d *daemon) *soakWatch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &soakWatch{d: d, cancel: cancel, ended: make(chan struct{})}
	w.ask = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.dir+"/hvd.sock")
	}}}
	go func() {
		defer close(w.ended)
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(soakSampleEvery):
				w.sample()
			}
		}
	}()
	d.t.Cleanup(w.end)
	return w
}

// pause and resume enclose a time in which hvd does not run.
func (w *soakWatch) pause()  { w.mu.Lock() }
func (w *soakWatch) resume() { w.mu.Unlock() }

func (w *soakWatch) end() {
	w.cancel()
	<-w.ended
}

func (w *soakWatch) sample() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.d.dead() {
		return // the director will tell
	}
	goroutines, err := w.goroutines()
	if err != nil {
		w.err = err
		return
	}
	now := soakSample{anonymous: w.d.anonymousBytes(), goroutines: goroutines}
	for _, target := range w.d.openFiles() {
		if strings.HasPrefix(target, w.d.dir+"/") {
			now.ofStore++
		} else {
			now.others++
		}
	}
	w.samples = append(w.samples, now)
}

// goroutines asks hvd how many it has.
func (w *soakWatch) goroutines() (n int, err error) {
	got, err := w.ask.Get("http://hvd/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, err
	}
	defer got.Body.Close()
	line, err := bufio.NewReader(got.Body).ReadString('\n')
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(line, "goroutine profile: total %d", &n); err != nil {
		return 0, fmt.Errorf("%q: %w", line, err)
	}
	return n, nil
}

// thirds returns the medians of a figure in the first and in the last third of the samples, and the most that it ever was.
func (w *soakWatch) thirds(figure func(soakSample) int64) (first, last, most int64) {
	all := make([]int64, len(w.samples))
	for i, s := range w.samples {
		all[i] = figure(s)
	}
	median := func(part []int64) int64 {
		part = slices.Clone(part)
		slices.Sort(part)
		return part[len(part)/2]
	}
	third := (len(all) + 2) / 3
	return median(all[:third]), median(all[len(all)-third:]), slices.Max(all)
}
