package trial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/guestagent"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
)

// Result is what came of a trial, also of one that failed.
type Result struct {
	Console string        // the line that was waited for, if it came
	Agent   string        // the version of the agent that answered, if it did
	Took    time.Duration // from the start of QEMU to the last answer that was needed, or to the end
	Accel   Accel
	Boots   int      // how often the firmware began
	Tail    []string // the last lines of the console
}

// Failure is a guest that did not answer.
type Failure struct {
	Why    string
	Result Result
}

// Error says why, after how long, and what it said last.
func (f *Failure) Error() string {
	text := fmt.Sprintf("%s, after %v", f.Why, f.Result.Took.Round(100*time.Millisecond))
	if f.Result.Boots > 1 {
		text += fmt.Sprintf(", in which it began anew %d times", f.Result.Boots-1)
	}
	if len(f.Result.Tail) == 0 {
		return text + "; its console said nothing"
	}
	return text + fmt.Sprintf("; its console said last: %q", f.Result.Tail[len(f.Result.Tail)-1])
}

// news is what the goroutines of a trial find.
type news struct {
	console  string // a line that was waited for
	agent    string // that answered
	hopeless string // why it will not come up
}

// trial is one guest that is waited for.
type trial struct {
	o      Options
	expect *regexp.Regexp // nil: the console is of no interest
	either bool           // the console or the agent suffices
	found  chan news      // has room for all that there may be
	heard  chan struct{}  // closed when the console has ended

	mu struct {
		sync.Mutex
		tail     tail
		partial  string // the line that has no end yet
		boots    int
		matched  bool
		match    string // the line that matches, until it is told
		hopeless bool
		why      string // it is, until it is told
		last     string // the line that says so
	}
}

// firmwareBegins is what QEMU's BIOS and OVMF say first.
var firmwareBegins = regexp.MustCompile(`^SeaBIOS \(version|^BdsDxe: starting Boot`)

// Run boots and waits until the guest has answered, then kills it. An error is a *Failure if QEMU ran and the guest did not answer as it should; that of ctx if it ended; any other is the machine's that this runs on. QEMU is gone when it returns.
func Run(ctx context.Context, o Options) (r Result, err error) {
	files := slices.Clone(o.Disks)
	handOver := func() {
		for _, f := range files {
			_ = f.Close()
		}
		files = nil
	}
	defer handOver()
	if len(o.Disks) == 0 || len(o.Disks) > MaxDisks {
		return r, fmt.Errorf("%d disks: want 1 to %d: %w", len(o.Disks), MaxDisks, block.ErrInvalid)
	}
	if o, err = o.withDefaults(); err != nil {
		return r, err
	}
	serial, theirs, err := unixsock.Pair()
	if err != nil {
		return r, err
	}
	defer serial.Close()
	files = append(files, theirs)
	channel, theirs, err := unixsock.Pair()
	if err != nil {
		return r, err
	}
	defer channel.Close()
	files = append(files, theirs)

	t := &trial{o: o, expect: o.Expect, either: o.Expect == nil && !o.Agent, found: make(chan news, 3), heard: make(chan struct{})}
	if t.either {
		t.expect = Login
	}
	trying, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	began := time.Now()
	p, err := o.start(files)
	handOver() // or the console would not end with QEMU
	if err != nil {
		return r, err
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		read(serial, t.hear)
		t.tellMatch()
		close(t.heard)
	})
	if o.Agent || t.either {
		wait.Go(func() { t.ask(trying, guestagent.On(channel, "the guest's channel")) })
	}
	why := t.wait(trying, p, &r)
	r.Took = time.Since(began)
	var failed error // of QEMU itself
	select {
	case <-p.ended:
		failed = p.err
	default:
		p.kill()
	}
	cancel()
	_, _ = serial.Close(), channel.Close()
	wait.Wait()
	t.mu.tail.add(t.mu.partial)
	r.Accel, r.Tail, r.Boots = o.Accel, slices.Clone(t.mu.tail), t.mu.boots
	switch {
	case why == "":
		return r, nil
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case failed != nil:
		return r, failed
	}
	return r, &Failure{why, r}
}

// wait waits for what is needed. why is empty if all of it came.
func (t *trial) wait(ctx context.Context, p *process, r *Result) (why string) {
	for {
		select {
		case n := <-t.found:
			if why, done := t.take(n, r); done {
				return why
			}
		case <-p.ended:
			<-t.heard
			for {
				select {
				case n := <-t.found: // it said that, and then it ended
					if why, done := t.take(n, r); done {
						return why
					}
					continue
				default:
				}
				return "the guest powered off before it answered"
			}
		case <-ctx.Done():
			return "no answer: " + t.missing(r)
		}
	}
}

// take notes what was found, and reports whether that ends the trial, and why without success.
func (t *trial) take(n news, r *Result) (why string, done bool) {
	if n.hopeless != "" {
		return n.hopeless, true
	}
	if n.console != "" {
		r.Console = n.console
	}
	if n.agent != "" {
		r.Agent = n.agent
	}
	return "", t.either || (t.expect == nil || r.Console != "") && (!t.o.Agent || r.Agent != "")
}

// missing says what has not come.
func (t *trial) missing(r *Result) string {
	var all []string
	if t.expect != nil && r.Console == "" {
		if t.expect == Login {
			all = append(all, "no login prompt on its serial console (does the guest have console=ttyS0?)")
		} else {
			all = append(all, fmt.Sprintf("nothing on its serial console matches %q", t.expect))
		}
	}
	if (t.o.Agent || t.either) && r.Agent == "" {
		all = append(all, "its qemu-guest-agent does not answer")
	}
	return strings.Join(all, ", and ")
}

// hear looks at lines of the console.
func (t *trial) hear(lines []line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range lines {
		if t.mu.partial = l.text; l.whole {
			t.mu.partial = ""
			t.mu.tail.add(l.text)
			if firmwareBegins.MatchString(l.text) {
				t.mu.boots++
			}
			if t.o.Console != nil {
				fmt.Fprintln(t.o.Console, l.text)
			}
		}
		if t.mu.match != "" || t.expect != nil && !t.mu.matched && t.expect.MatchString(l.text) {
			if t.mu.match = l.text; !t.mu.matched && !l.whole {
				time.AfterFunc(restTime, t.tellMatch)
			}
			if t.mu.matched = true; l.whole {
				t.tellMatchLocked()
			}
			continue
		}
		if t.mu.hopeless && t.mu.why == "" {
			continue // and was told
		}
		for _, h := range hopeless {
			if t.mu.why == "" && h.sign.MatchString(l.text) {
				t.mu.why = h.why
			}
		}
		if t.mu.why == "" {
			continue
		}
		if t.mu.last = l.text; !t.mu.hopeless && !l.whole {
			time.AfterFunc(restTime, t.tellHopeless)
		}
		if t.mu.hopeless = true; l.whole {
			t.tellHopelessLocked()
		}
	}
}

// tellHopeless tells why it will not come up, if that was not told.
func (t *trial) tellHopeless() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tellHopelessLocked()
}

func (t *trial) tellHopelessLocked() {
	if t.mu.why != "" {
		t.found <- news{hopeless: fmt.Sprintf("%s: %q", t.mu.why, t.mu.last)}
		t.mu.why = ""
	}
}

// restTime is how long the rest of a line may take that matches already, as a prompt does, which has no end.
const restTime = 200 * time.Millisecond

// tellMatch tells of the line that matches, if there is one and it was not told.
func (t *trial) tellMatch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tellMatchLocked()
}

func (t *trial) tellMatchLocked() {
	if t.mu.match != "" {
		t.found <- news{console: cmp.Or(strings.TrimSpace(t.mu.match), t.mu.match)}
		t.mu.match = ""
	}
}

const (
	askTime  = 10 * time.Second // until the agent is asked again: a guest that restarts loses the question
	askPause = time.Second
)

// ask asks the agent until it answers or ctx ends.
func (t *trial) ask(ctx context.Context, a *guestagent.Agent) {
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, askTime)
		version, err := a.Ping(asking)
		cancel()
		if err == nil {
			t.found <- news{agent: version}
			return
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
		}
	}
}
