package libvirt

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
)

// fakeGuest answers as libvirt does for one guest.
type fakeGuest struct {
	mu       sync.Mutex
	asked    error // what the time is answered with
	freezing error // what the freeze is answered with
	later    time.Duration
	thawing  []error // what thaws are answered with, one after the other, then nil
	is       libvirt.DomainState
	cut      bool // the agent is disconnected
	selfThaw bool // it goes on by itself

	frozen        bool
	freezes, thaw int
}

func said(code libvirt.ErrorNumber) error { return &Error{Code: code, Text: "no"} }

func (g *fakeGuest) agentTimeout(context.Context, Domain, int32) error { return nil }
func (g *fakeGuest) agentTime(context.Context, Domain) error           { return g.asked }
func (g *fakeGuest) disconnected(context.Context, Domain) bool         { return g.cut }
func (g *fakeGuest) state(context.Context, Domain) (libvirt.DomainState, error) {
	return g.is, nil
}

func (g *fakeGuest) fsFreeze(context.Context, Domain) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.freezes++
	if g.later > 0 {
		time.AfterFunc(g.later, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.frozen = true
		})
	} else if g.freezing == nil && !g.selfThaw {
		g.frozen = true
	}
	return 2, g.freezing
}

func (g *fakeGuest) fsThaw(context.Context, Domain) (n int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.thaw++
	if len(g.thawing) > 0 {
		err, g.thawing = g.thawing[0], g.thawing[1:]
	}
	if err == nil && g.frozen {
		g.frozen, n = false, 2
	}
	return n, err
}

// Whatever libvirt says, a guest is at rest only if it was, goes on, and is left to others where they have frozen it.
func TestAtRest(t *testing.T) {
	quick := pace{ask: time.Second, frozen: time.Second, thaw: 600 * time.Millisecond, silent: 100 * time.Millisecond, late: 400 * time.Millisecond, pause: time.Millisecond}
	always := func(err error) []error {
		all := make([]error, 10_000)
		for i := range all {
			all[i] = err
		}
		return all
	}
	invalid, silent := said(libvirt.ErrOperationInvalid), said(libvirt.ErrAgentUnresponsive)
	for name, c := range map[string]struct {
		guest  *fakeGuest
		frozen int  // that are reported
		fails  bool // with an error
		still  bool // which is ErrFrozen
		thaws  bool // it is told to go on
	}{
		"all is well":                        {guest: &fakeGuest{}, frozen: 2, thaws: true},
		"libvirtd restarts":                  {guest: &fakeGuest{thawing: []error{io.EOF, io.EOF}}, frozen: 2, thaws: true},
		"it is paused for a while":           {guest: &fakeGuest{is: libvirt.DomainPaused, thawing: []error{invalid, invalid, invalid}}, frozen: 2, thaws: true},
		"it is paused":                       {guest: &fakeGuest{is: libvirt.DomainPaused, thawing: always(invalid)}, fails: true, still: true, thaws: true},
		"it is shut off":                     {guest: &fakeGuest{is: libvirt.DomainShutoff, thawing: always(invalid)}, fails: true, thaws: true},
		"it crashes":                         {guest: &fakeGuest{is: libvirt.DomainCrashed, thawing: always(invalid)}, fails: true, thaws: true},
		"it is undefined":                    {guest: &fakeGuest{thawing: always(said(libvirt.ErrNoDomain))}, fails: true, thaws: true},
		"it goes on by itself":               {guest: &fakeGuest{selfThaw: true}, fails: true, thaws: true},
		"the freeze comes late":              {guest: &fakeGuest{freezing: io.EOF, later: 200 * time.Millisecond}, fails: true, thaws: true},
		"the freeze never comes":             {guest: &fakeGuest{freezing: io.EOF}, fails: true, thaws: true},
		"the agent is stuck before":          {guest: &fakeGuest{asked: silent}, fails: true},
		"it is paused before":                {guest: &fakeGuest{asked: invalid}, fails: true},
		"the agent does not tell the time":   {guest: &fakeGuest{asked: said(libvirt.ErrInternalError)}, frozen: 2, thaws: true},
		"the agent is stuck with the freeze": {guest: &fakeGuest{freezing: silent, thawing: always(silent)}, fails: true, still: true, thaws: true},
		"the agent is late with the freeze":  {guest: &fakeGuest{freezing: said(libvirt.ErrAgentCommandTimeout), later: 200 * time.Millisecond}, fails: true, thaws: true},
		"the agent is gone":                  {guest: &fakeGuest{freezing: silent, cut: true, thawing: always(silent)}, fails: true, thaws: true},
		"somebody else has frozen it":        {guest: &fakeGuest{freezing: said(libvirt.ErrAgentCommandFailed), frozen: true}, fails: true},
		"somebody else has, before 9.1":      {guest: &fakeGuest{freezing: &Error{Code: libvirt.ErrInternalError, Text: "unable to execute QEMU agent command 'guest-fsfreeze-freeze': it is frozen"}, frozen: true}, fails: true},
		"libvirt fails":                      {guest: &fakeGuest{freezing: said(libvirt.ErrInternalError)}, fails: true, thaws: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, ours := c.guest, !c.guest.frozen
			rests, err := resting{g, quick}.atRest(t.Context(), []Domain{{Name: "a"}}, func(context.Context) error { return nil })
			if err != nil || rests[0].Frozen != c.frozen || (rests[0].Err != nil) != c.fails || errors.Is(rests[0].Err, ErrFrozen) != c.still {
				t.Errorf("%+v, %v", rests[0], err)
			}
			if g.mu.Lock(); (g.thaw > 0) != c.thaws || ours && g.frozen && !c.still && g.is == libvirt.DomainNostate && len(g.thawing) == 0 || !ours && !g.frozen {
				t.Errorf("told to go on %d times, frozen: %v", g.thaw, g.frozen)
			}
			if g.mu.Unlock(); g.asked != nil && c.frozen == 0 && g.freezes > 0 {
				t.Error("it was asked to freeze")
			}
		})
	}
}
