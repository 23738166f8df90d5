package access

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Rights are what a client may do with a repository.
type Rights uint8

// The rights. Append makes backups and reads what a writer with keys that can only write needs for it: neither manifests nor what is in packs. Read reads everything and changes nothing. All is everything.
const (
	Append Rights = 1 << iota
	Read
	Delete
	All = Append | Read | Delete
)

// Has reports whether there are all of some rights.
func (r Rights) Has(all Rights) bool { return r&all == all }

// String names them as ParseRules does, the strongest alone, or with plus signs between.
func (r Rights) String() string {
	switch {
	case r.Has(Delete):
		return "all"
	case r == 0:
		return "none"
	}
	var names []string
	if r.Has(Append) {
		names = append(names, "append")
	}
	if r.Has(Read) {
		names = append(names, "read")
	}
	return strings.Join(names, "+")
}

var rightNames = map[string]Rights{"append": Append, "read": Read, "all": All}

// Rule gives a client rights.
type Rule struct {
	Peer       string // a name in its certificate
	Rights     Rights
	Repository string // that they are for; empty: any
}

// Rules are all that there are for the clients of a host. Several for one client add up.
type Rules []Rule

// Bounds of rules.
const (
	maxRules = 4096
	maxPeer  = 253 // bytes: of a DNS name
)

// ParseRules reads rules with commas between, each PEER=RIGHT or PEER=RIGHT:REPOSITORY, RIGHT being append, read or all. The error wraps block.ErrInvalid.
func ParseRules(text string) (Rules, error) {
	var all Rules
	for entry := range strings.SplitSeq(text, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		bad := func(why string) (Rules, error) {
			return nil, fmt.Errorf("%.300q: %s; want PEER=RIGHT or PEER=RIGHT:REPOSITORY, RIGHT being append, read or all, as web1=append:vms: %w", entry, why, block.ErrInvalid)
		}
		peer, what, ok := strings.Cut(entry, "=")
		right, repository, narrowed := strings.Cut(what, ":")
		rights := rightNames[right]
		switch {
		case !ok || peer == "" || len(peer) > maxPeer:
			return bad("no name of a client")
		case rights == 0:
			return bad("no such right")
		case narrowed && CheckName(repository) != nil:
			return bad("no name of a repository")
		case len(all) >= maxRules:
			return bad(fmt.Sprintf("more than %d rules", maxRules))
		}
		all = append(all, Rule{Peer: peer, Rights: rights, Repository: repository})
	}
	return all, nil
}

// Of returns what a client with one of some names may do with a repository.
func (rules Rules) Of(names []string, repository string) (r Rights) {
	for _, rule := range rules {
		if slices.Contains(names, rule.Peer) && (rule.Repository == "" || rule.Repository == repository) {
			r |= rule.Rights
		}
	}
	return r
}

// maxName bounds the name of a repository, bytes.
const maxName = 64

// CheckName returns block.ErrInvalid for what cannot be the name of a repository: 1 to 64 lower-case letters, digits, dots, dashes and underscores, of which the first is no dot.
func CheckName(name string) error {
	if len(name) > maxName || strings.Contains(name, "/") || backend.CheckKey(name) != nil {
		return fmt.Errorf("name of a repository %.100q: want 1 to %d lower-case letters, digits, dots, dashes and underscores, no dot first: %w", name, maxName, block.ErrInvalid)
	}
	return nil
}
