package journal

import "sync"

// warmer asks the kernel for the indexes of files that replay comes to next, so that a device works while replay computes. It is an advice: whatever fails, replay meets
// itself.
type warmer struct {
	ahead   chan struct{} // one for each file that replay has not reached yet
	quit    chan struct{}
	running sync.WaitGroup
}

// warmAhead is by how many files the warmer is ahead: 16 indexes of 4 KiB writes are about 6 MiB.
const warmAhead = 16

// warm begins with the first of the files, whose headers are valid.
func warm(files []*logFile) *warmer {
	w := &warmer{ahead: make(chan struct{}, warmAhead), quit: make(chan struct{})}
	w.running.Go(func() {
		for _, f := range files {
			select {
			case w.ahead <- struct{}{}:
			case <-w.quit:
				return
			}
			if ft, ok, err := readFooter(f); ok && err == nil {
				_ = f.f.Prefetch(ft.IndexOff, ft.IndexLen)
			}
		}
	})
	return w
}

// next says that replay begins with another file.
func (w *warmer) next() {
	select {
	case <-w.ahead:
	default: // replay is ahead
	}
}

// stop returns when no file is touched any more.
func (w *warmer) stop() {
	close(w.quit)
	w.running.Wait()
}
