package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"
)

const (
	freezeTime = 10 * time.Second // for a guest's agent to freeze it
	answerTime = 5 * time.Second  // beyond that, for libvirt to say so
)

// pace is how long things may take.
type pace struct {
	ask    time.Duration // for libvirt to answer what an agent is asked
	frozen time.Duration // that guests are frozen at most, from when the first was asked to
	thaw   time.Duration // in which thawing is tried again: libvirt lets a call wait for another one for 30 s
	silent time.Duration // the same where nothing was asked to freeze, as far as libvirt knows
	late   time.Duration // after which a freeze that was asked for comes no more: it may wait 30 s in libvirtd, and then 10 s for the agent
	pause  time.Duration
}

var usual = pace{ask: freezeTime + answerTime, frozen: 20 * time.Second, thaw: 60 * time.Second, silent: 15 * time.Second, late: 45 * time.Second, pause: 200 * time.Millisecond}

// Rest is how it went with one domain.
type Rest struct {
	Frozen int           // file systems of its guest that were at rest
	For    time.Duration // from when libvirt was asked to freeze it to when it went on
	Err    error         // why they were not, or are frozen still
}

// AtRest calls do while the file systems of the guests of domains are frozen, and thaws them whatever happens: if do fails, if ctx, or libvirtd, ends meanwhile, or after 20 s, when the context of do ends. A guest that cannot be frozen within 10 s does not
// keep do from being called; its Rest says why. err is what do returned. A guest of which nobody knows whether it goes on has ErrFrozen.
func (c *Conn) AtRest(ctx context.Context, domains []Domain, do func(context.Context) error) (rests []Rest, err error) {
	return resting{wire{c}, usual}.atRest(ctx, domains, do)
}

// Thaw lets the guest of a domain go on that somebody else has left frozen, or may have asked to freeze a moment ago. It tries for that long.
func (c *Conn) Thaw(ctx context.Context, d Domain, limit time.Duration) error {
	_, err := resting{wire{c}, usual}.thaw(ctx, d, limit, time.Now())
	return err
}

// ErrFrozen is that of a guest that may still be frozen.
var ErrFrozen = errors.New("the guest may still be frozen")

// resting freezes and thaws.
type resting struct {
	guestCalls
	pace
}

func (r resting) atRest(ctx context.Context, domains []Domain, do func(context.Context) error) (rests []Rest, err error) {
	rests = make([]Rest, len(domains))
	var readying, freezing, thawing sync.WaitGroup
	for i, d := range domains { // before any is frozen: nobody shall wait for who does not answer
		readying.Go(func() { rests[i].Err = r.ready(ctx, d) })
	}
	readying.Wait()
	began := time.Now()
	for i, d := range domains {
		if rests[i].Err != nil {
			continue
		}
		freezing.Go(func() {
			sent := time.Now()
			if rests[i].Frozen, rests[i].Err = r.freeze(ctx, d); rests[i].Err != nil {
				thawing.Go(func() { rests[i].Err = r.undo(ctx, d, rests[i].Err, sent) })
			}
		})
	}
	freezing.Wait()
	held := make([]bool, len(domains))
	for i := range rests {
		held[i] = rests[i].Frozen > 0
	}
	doing, cancel := context.WithDeadline(ctx, began.Add(r.frozen))
	defer cancel()
	if err = doing.Err(); err == nil {
		err = do(doing)
	}
	for i, d := range domains {
		if held[i] {
			thawing.Go(func() {
				n, err := r.thaw(ctx, d, r.pace.thaw, time.Time{})
				if err == nil && n == 0 {
					err = fmt.Errorf("the guest of domain %q was frozen no more when it was told to go on: it went on by itself, or ended", d.Name)
				}
				if rests[i].Err = err; err != nil {
					rests[i].Frozen = 0
				}
				rests[i].For = time.Since(began)
			})
		}
	}
	thawing.Wait()
	return rests, err
}

// ready bounds how long libvirt waits for the agent of a domain, and asks it for something that changes nothing: one that does not answer is not asked to freeze, which it might do at any later time. After an error nothing is frozen.
func (r resting) ready(ctx context.Context, d Domain) error {
	ctx, cancel := context.WithTimeout(ctx, r.ask)
	defer cancel()
	if err := r.agentTimeout(ctx, d, int32(freezeTime/time.Second)); err != nil {
		return fmt.Errorf("freeze the guest of domain %q: %w", d.Name, err)
	}
	err := r.agentTime(ctx, d)
	if said := (*Error)(nil); errors.As(err, &said) && said.Code != libvirt.ErrNoDomain && said.Code != libvirt.ErrOperationInvalid && !unanswered(said) {
		err = nil // it may not tell the time, but it answers
	}
	if err != nil {
		return fmt.Errorf("freeze the guest of domain %q: its agent was asked for the time first: %w", d.Name, err)
	}
	return nil
}

// freeze freezes the guest of a domain and returns how many of its file systems. After an error some may be frozen, or be so later.
func (r resting) freeze(ctx context.Context, d Domain) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.ask)
	defer cancel()
	if n, err = r.fsFreeze(ctx, d); err != nil {
		return 0, fmt.Errorf("freeze the guest of domain %q: %w", d.Name, err)
	}
	if n <= 0 {
		return 0, fmt.Errorf("freeze the guest of domain %q: %w", d.Name, noFileSystem{})
	}
	return n, nil
}

// unanswered reports whether libvirt has given up waiting for an agent, which may do later what it was asked for.
func unanswered(said *Error) bool {
	return said.Code == libvirt.ErrAgentUnresponsive || said.Code == libvirt.ErrAgentCommandTimeout
}

// refused reports whether the agent itself has said no to a freeze. It does so, too, when somebody else has frozen the guest.
func refused(said *Error) bool {
	return said.Code == libvirt.ErrAgentCommandFailed || said.Code == libvirt.ErrInternalError && strings.Contains(said.Text, "'guest-fsfreeze-freeze'") // before libvirt 9.1
}

// undo thaws what a freeze that was sent then, and failed, may have frozen.
func (r resting) undo(ctx context.Context, d Domain, failed error, sent time.Time) error {
	said := (*Error)(nil)
	if errors.As(failed, &said) {
		switch {
		case said.Code == libvirt.ErrArgumentUnsupported, said.Code == libvirt.ErrOperationInvalid, said.Code == libvirt.ErrNoDomain: // no agent was ever asked
			return failed
		case refused(said): // what is frozen is somebody else's
			return failed
		case unanswered(said):
			asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.ask)
			disconnected := r.disconnected(asking, d)
			cancel()
			if disconnected {
				if _, err := r.thaw(ctx, d, r.silent, time.Time{}); err != nil {
					return fmt.Errorf("%w; nor does it answer when it is told to go on", failed)
				}
				return failed
			}
		default:
			sent = time.Time{}
		}
	} else if n := (noFileSystem{}); errors.As(failed, &n) {
		sent = time.Time{}
	}
	_, err := r.thaw(ctx, d, r.pace.thaw, sent)
	return errors.Join(failed, err)
}

// noFileSystem is that of a guest that has none which could be frozen.
type noFileSystem struct{}

// Error implements error.
func (noFileSystem) Error() string { return "it has no file system that can be frozen" }

// thaw lets the guest of a domain go on, again and again until somebody says that it does, or that there is no such guest any more, and returns how many file systems went on. sent is when a freeze was sent of which nobody knows how it ended, else zero:
// what went on before such a freeze is frozen after it.
func (r resting) thaw(ctx context.Context, d Domain, limit time.Duration, sent time.Time) (int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	for {
		asked := time.Now()
		n, err := r.fsThaw(ctx, d)
		if err == nil && (n > 0 || sent.IsZero() || asked.Sub(sent) >= r.late) {
			// What libvirt does by itself. Not being able to say so keeps nobody frozen.
			_ = r.agentTimeout(ctx, d, int32(libvirt.DomainAgentResponseTimeoutBlock))
			return n, nil
		}
		if err == nil {
			err = errors.New("nothing was frozen yet, but a freeze may be on its way")
		} else if r.gone(ctx, d, err) {
			return 0, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("domain %q, which could not be told to go on: %w; it goes on with `virsh domfsthaw %s`, or when it is reset: %w", d.Name, err, d.Name, ErrFrozen)
		case <-time.After(r.pause):
		}
	}
}

// gone reports whether a domain has ended, given what libvirt has said: then nothing of it is frozen. libvirt says the same of one that is paused.
func (r resting) gone(ctx context.Context, d Domain, err error) bool {
	said := (*Error)(nil)
	if !errors.As(err, &said) {
		return false
	}
	if said.Code == libvirt.ErrOperationInvalid {
		state, err := r.state(ctx, d)
		if err == nil {
			return state == libvirt.DomainShutoff || state == libvirt.DomainCrashed
		}
		if !errors.As(err, &said) {
			return false
		}
	}
	return said.Code == libvirt.ErrNoDomain
}
