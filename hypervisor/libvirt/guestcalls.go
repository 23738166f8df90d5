package libvirt

import (
	"context"
	"errors"

	"github.com/digitalocean/go-libvirt"

	"github.com/hyper-nixos/hyper-nixos/hypervisor"
)

// guestCalls are the calls that bring guests to rest. An error that is no *Error leaves open whether it was done.
type guestCalls interface {
	agentTimeout(ctx context.Context, d Domain, seconds int32) error
	agentTime(context.Context, Domain) error
	fsFreeze(context.Context, Domain) (int, error)
	fsThaw(context.Context, Domain) (int, error)
	state(context.Context, Domain) (libvirt.DomainState, error)
	disconnected(context.Context, Domain) bool // the agent, as far as is known
}

// wire makes them of a libvirtd.
type wire struct{ c *Conn }

// agentTimeout bounds, in seconds, how long libvirt waits for answers of the agent. Without that it waits for ever, with the domain locked, and no thaw gets through.
func (w wire) agentTimeout(ctx context.Context, d Domain, seconds int32) error {
	_, err := call(ctx, w.c, func(l *libvirt.Libvirt) (int32, error) { return l.DomainAgentSetResponseTimeout(d.raw, seconds, 0) })
	if errors.Is(err, libvirt.ErrUnsupported) { // before libvirt 5.10
		return nil
	}
	return err
}

func (w wire) agentTime(ctx context.Context, d Domain) error {
	_, err := call(ctx, w.c, func(l *libvirt.Libvirt) (int64, error) {
		seconds, _, err := l.DomainGetTime(d.raw, 0)
		return seconds, err
	})
	return err
}

func (w wire) fsFreeze(ctx context.Context, d Domain) (int, error) {
	n, err := call(ctx, w.c, func(l *libvirt.Libvirt) (int32, error) { return l.DomainFsfreeze(d.raw, nil, 0) })
	return int(n), err
}

func (w wire) fsThaw(ctx context.Context, d Domain) (int, error) {
	n, err := call(ctx, w.c, func(l *libvirt.Libvirt) (int32, error) { return l.DomainFsthaw(d.raw, nil, 0) })
	return int(n), err
}

func (w wire) state(ctx context.Context, d Domain) (libvirt.DomainState, error) {
	return call(ctx, w.c, func(l *libvirt.Libvirt) (libvirt.DomainState, error) {
		state, _, err := l.DomainGetState(d.raw, 0)
		return libvirt.DomainState(state), err
	})
}

func (w wire) disconnected(ctx context.Context, d Domain) bool {
	text, err := w.c.RunningXML(ctx, d)
	if err != nil {
		return false
	}
	now, err := hypervisor.Parse(text)
	return err == nil && now.Agent == hypervisor.AgentDisconnected
}
