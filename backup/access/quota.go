package access

import (
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// Quotas bound how many bytes of objects there may be, by the name of a repository or of a client.
type Quotas map[string]uint64

// Others is the name of whoever has no entry of its own.
const Others = "*"

// ParseQuotas reads quotas with commas between, each NAME=SIZE, NAME being one that check takes, or * for each other one. The error wraps block.ErrInvalid.
func ParseQuotas(text string, check func(name string) error) (Quotas, error) {
	all := Quotas{}
	for entry := range strings.SplitSeq(text, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		bad := func(why string) (Quotas, error) {
			return nil, fmt.Errorf("%.300q: %s; want NAME=SIZE, as vms=500GiB, or *=SIZE for each other: %w", entry, why, block.ErrInvalid)
		}
		name, size, ok := strings.Cut(entry, "=")
		bytes, err := units.ParseSize(size)
		switch {
		case name != Others && check(name) != nil:
			return bad("no name")
		case !ok || err != nil || bytes == 0:
			return bad("no size")
		case all[name] != 0:
			return bad("named twice")
		case len(all) >= maxRules:
			return bad(fmt.Sprintf("more than %d quotas", maxRules))
		}
		all[name] = uint64(bytes)
	}
	return all, nil
}

// CheckPeer returns block.ErrInvalid for what cannot be the name of a client: that of a certificate.
func CheckPeer(name string) error {
	if name == "" || len(name) > maxPeer {
		return fmt.Errorf("name of a client %.100q: want 1 to %d bytes: %w", name, maxPeer, block.ErrInvalid)
	}
	return nil
}

// Of returns the bound of a name, 0 for none.
func (q Quotas) Of(name string) uint64 {
	if n, own := q[name]; own {
		return n
	}
	return q[Others]
}

// Account is the one of a client's names that its bytes count for: the first with an entry, or else the first.
func (q Quotas) Account(names []string) string {
	for _, name := range names {
		if _, own := q[name]; own {
			return name
		}
	}
	return names[0]
}

// Exempt reports whether an object passes quotas when it is made by who may delete: what a prune makes, so that there is a way back from a repository that is full.
func (r Rights) Exempt(key string) bool {
	if !r.Has(Delete) {
		return false
	}
	first, _, _ := strings.Cut(key, "/")
	return first == "marks" || first == "index" || first == "probes"
}
