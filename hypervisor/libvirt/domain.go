package libvirt

import (
	"context"
	"fmt"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Domain is a domain of a libvirtd, as it was when it was looked for.
type Domain struct {
	Name string
	UUID string
	raw  libvirt.Domain
}

// State is what a domain does.
type State string

// States. Whatever has processes is running, a paused domain too.
const (
	Running State = "running"
	ShutOff State = "shut off"
)

func domainOf(raw libvirt.Domain) Domain {
	return Domain{Name: raw.Name, UUID: uuid.UUID(raw.UUID).String(), raw: raw}
}

// Domains lists all domains, running or not.
func (c *Conn) Domains(ctx context.Context) ([]Domain, error) {
	list, err := call(ctx, c, func(l *libvirt.Libvirt) ([]libvirt.Domain, error) {
		list, _, err := l.ConnectListAllDomains(1, 0)
		return list, err
	})
	all := make([]Domain, 0, len(list))
	for _, raw := range list {
		all = append(all, domainOf(raw))
	}
	return all, err
}

// Find looks for a domain by its name; block.ErrNotFound if there is none.
func (c *Conn) Find(ctx context.Context, name string) (Domain, error) {
	raw, err := call(ctx, c, func(l *libvirt.Libvirt) (libvirt.Domain, error) { return l.DomainLookupByName(name) })
	if err != nil {
		return Domain{}, fmt.Errorf("domain %q: %w", name, err)
	}
	return domainOf(raw), nil
}

// FindUUID looks for a domain by its UUID; block.ErrNotFound if there is none.
func (c *Conn) FindUUID(ctx context.Context, id string) (Domain, error) {
	u, err := uuid.Parse(id)
	if err != nil {
		return Domain{}, fmt.Errorf("domain of UUID %.40q: %w", id, block.ErrInvalid)
	}
	raw, err := call(ctx, c, func(l *libvirt.Libvirt) (libvirt.Domain, error) { return l.DomainLookupByUUID(libvirt.UUID(u)) })
	if err != nil {
		return Domain{}, fmt.Errorf("domain %s: %w", id, err)
	}
	return domainOf(raw), nil
}

// State says whether a domain runs; block.ErrNotFound if it is gone.
func (c *Conn) State(ctx context.Context, d Domain) (State, error) {
	state, err := call(ctx, c, func(l *libvirt.Libvirt) (libvirt.DomainState, error) {
		state, _, err := l.DomainGetState(d.raw, 0)
		return libvirt.DomainState(state), err
	})
	if err != nil {
		return "", fmt.Errorf("domain %q: %w", d.Name, err)
	}
	if state == libvirt.DomainShutoff || state == libvirt.DomainCrashed || state == libvirt.DomainNostate {
		return ShutOff, nil
	}
	return Running, nil
}

// RunningXML is the definition of a domain as it is now, without what is secret in it.
func (c *Conn) RunningXML(ctx context.Context, d Domain) (string, error) { return c.xml(ctx, d, 0) }

// StoredXML is the definition with which a domain starts next, with what is secret in it: without its passwords it could not be defined again as it was. It is for a place that is as secret.
func (c *Conn) StoredXML(ctx context.Context, d Domain) (string, error) {
	return c.xml(ctx, d, libvirt.DomainXMLInactive|libvirt.DomainXMLSecure)
}

func (c *Conn) xml(ctx context.Context, d Domain, flags libvirt.DomainXMLFlags) (string, error) {
	text, err := call(ctx, c, func(l *libvirt.Libvirt) (string, error) { return l.DomainGetXMLDesc(d.raw, flags) })
	if err != nil {
		return "", fmt.Errorf("definition of domain %q: %w", d.Name, err)
	}
	return text, nil
}

// Define makes a domain, or gives one of the same name and UUID another definition. It is durable when libvirt answers.
func (c *Conn) Define(ctx context.Context, xml string) (Domain, error) {
	raw, err := call(ctx, c, func(l *libvirt.Libvirt) (libvirt.Domain, error) { return l.DomainDefineXMLFlags(xml, 0) })
	if err != nil {
		return Domain{}, fmt.Errorf("define the domain: %w", err)
	}
	return domainOf(raw), nil
}

// Start starts a domain.
func (c *Conn) Start(ctx context.Context, d Domain) error {
	_, err := call(ctx, c, func(l *libvirt.Libvirt) (struct{}, error) { return struct{}{}, l.DomainCreate(d.raw) })
	if err != nil {
		return fmt.Errorf("start domain %q: %w", d.Name, err)
	}
	return nil
}
