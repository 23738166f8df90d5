package libvirt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"
)

const (
	freezeTime = 10 * time.Second // for a guest's agent to freeze it
	answerTime = 5 * time.Second  // beyond that, for libvirt to say so
	frozenTime = 20 * time.Second // that guests are frozen at most, from when the first was asked to
	thawTime   = 60 * time.Second // in which thawing is tried again: libvirt lets a call wait for another one for 30 s
	silentTime = 15 * time.Second // the same of an agent that has not answered before, so that nothing is frozen, as far as libvirt knows
	thawPause  = 200 * time.Millisecond
)

// Rest is how it went with one domain.
type Rest struct {
	Frozen int           // file systems of its guest that were at rest
	For    time.Duration // from when libvirt was asked to freeze it to when it went on
	Err    error         // why they were not, or are frozen still
}

// AtRest calls do while the file systems of the guests of domains are frozen, and thaws them whatever happens: if do fails, if ctx, or libvirtd, ends meanwhile, or after 20 s, when the context of do ends. A guest that cannot be frozen within 10 s does not
// keep do from being called; its Rest says why. err is what do returned. A guest of which nobody knows whether it goes on has ErrFrozen.
func (c *Conn) AtRest(ctx context.Context, domains []Domain, do func(context.Context) error) (rests []Rest, err error) {
	rests = make([]Rest, len(domains))
	began := time.Now()
	var freezing, thawing sync.WaitGroup
	for i, d := range domains {
		freezing.Go(func() {
			if rests[i].Frozen, rests[i].Err = c.freeze(ctx, d); rests[i].Err != nil {
				thawing.Go(func() { rests[i].Err = c.undo(ctx, d, rests[i].Err) }) // nobody waits for who does not answer
			}
		})
	}
	freezing.Wait()
	held := make([]bool, len(domains))
	for i := range rests {
		held[i] = rests[i].Frozen > 0
	}
	doing, cancel := context.WithDeadline(ctx, began.Add(frozenTime))
	defer cancel()
	if err = doing.Err(); err == nil {
		err = do(doing)
	}
	for i, d := range domains {
		if held[i] {
			thawing.Go(func() {
				if rests[i].Err = c.thaw(ctx, d, thawTime); rests[i].Err != nil {
					rests[i].Frozen = 0
				}
				rests[i].For = time.Since(began)
			})
		}
	}
	thawing.Wait()
	return rests, err
}

// ErrFrozen is that of a guest that may still be frozen.
var ErrFrozen = errors.New("the guest may still be frozen")

// freeze freezes the guest of a domain and returns how many of its file systems. After an error some may be frozen.
func (c *Conn) freeze(ctx context.Context, d Domain) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, freezeTime+answerTime)
	defer cancel()
	if err := c.agentTimeout(ctx, d, int32(freezeTime/time.Second)); err != nil {
		return 0, fmt.Errorf("freeze the guest of domain %q: %w", d.Name, err)
	}
	frozen, err := call(ctx, c, func(l *libvirt.Libvirt) (int32, error) { return l.DomainFsfreeze(d.raw, nil, 0) })
	if err != nil {
		return 0, fmt.Errorf("freeze the guest of domain %q: %w", d.Name, err)
	}
	if frozen <= 0 {
		return 0, fmt.Errorf("freeze the guest of domain %q: it has no file system that can be frozen", d.Name)
	}
	return int(frozen), nil
}

// agentTimeout bounds, in seconds, how long libvirt waits for answers of the agent. Without that it waits for ever, with the domain locked, and no thaw gets through.
func (c *Conn) agentTimeout(ctx context.Context, d Domain, seconds int32) error {
	_, err := call(ctx, c, func(l *libvirt.Libvirt) (int32, error) { return l.DomainAgentSetResponseTimeout(d.raw, seconds, 0) })
	if errors.Is(err, libvirt.ErrUnsupported) { // before libvirt 5.10
		return nil
	}
	return err
}

// undo thaws what a freeze that failed may have frozen.
func (c *Conn) undo(ctx context.Context, d Domain, failed error) error {
	said := (*Error)(nil)
	if errors.As(failed, &said) && said.Code == libvirt.ErrArgumentUnsupported { // no agent was ever asked
		return failed
	}
	if errors.As(failed, &said) && said.Code == libvirt.ErrAgentUnresponsive {
		if err := c.thaw(ctx, d, silentTime); err != nil {
			return fmt.Errorf("%w; nor does it answer when it is told to go on", failed)
		}
		return failed
	}
	return errors.Join(failed, c.thaw(ctx, d, thawTime))
}

// thaw lets the guest of a domain go on, again and again until somebody says that it does, or that there is no such guest any more.
func (c *Conn) thaw(ctx context.Context, d Domain, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	for {
		_, err := call(ctx, c, func(l *libvirt.Libvirt) (int32, error) { return l.DomainFsthaw(d.raw, nil, 0) })
		if err == nil {
			// What libvirt does by itself. Not being able to say so keeps nobody frozen.
			_ = c.agentTimeout(ctx, d, int32(libvirt.DomainAgentResponseTimeoutBlock))
			return nil
		}
		if gone(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("domain %q, which could not be told to go on: %w; it goes on with `virsh domfsthaw %s`, or when it is reset: %w", d.Name, err, d.Name, ErrFrozen)
		case <-time.After(thawPause):
		}
	}
}

// Thaw lets the guest of a domain go on that somebody else has left frozen.
func (c *Conn) Thaw(ctx context.Context, d Domain) error { return c.thaw(ctx, d, thawTime) }
