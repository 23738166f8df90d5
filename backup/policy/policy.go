package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

// Policy says what to back up, when, and what to keep. The names of its fields are those of its file.
type Policy struct {
	Name         string              `json:"name"`
	Volumes      []string            `json:"volumes,omitempty"` // or
	Group        string              `json:"group,omitempty"`
	Domains      []string            `json:"domains,omitempty"`     // or: whole machines of libvirt
	Connect      string              `json:"connect,omitempty"`     // libvirt's URI; empty: as without a policy
	Files        map[string][]string `json:"files,omitempty"`       // besides: files and folders, by what their backup is called
	GuestAgents  []string            `json:"guestAgents,omitempty"` // VOLUME=SOCKET
	Endpoint     string              `json:"endpoint,omitempty"`    // of hvd; empty: as without a policy
	Repository   string              `json:"repository"`
	PasswordFile string              `json:"passwordFile,omitempty"`
	Identities   []string            `json:"identities,omitempty"` // files

	Every Seconds         `json:"everySeconds"`
	At    string          `json:"at,omitempty"` // "HH:MM", local; with whole days only
	Keep  retention.Rules `json:"keep"`         // all zero: everything

	Lock Seconds `json:"lockSeconds,omitempty"` // nobody can delete the backups that long; 0: they are not locked

	PruneEvery    Seconds `json:"pruneEverySeconds,omitempty"`  // 0: never
	VerifyEvery   Seconds `json:"verifyEverySeconds,omitempty"` // 0: never
	VerifyPercent int     `json:"verifyPercent,omitempty"`      // of the packs, to the last byte

	TestEvery   Seconds  `json:"testEverySeconds,omitempty"` // boot the backups; 0: never
	TestGuests  []string `json:"testGuests,omitempty"`       // VOLUME,VOLUME…: the disks of a guest, the first is booted from; or a domain; none: each volume, or domain, is a guest
	TestExpect  string   `json:"testExpect,omitempty"`       // what its console has to say, a regular expression
	TestAgent   bool     `json:"testAgent,omitempty"`        // its agent has to answer
	TestTimeout Seconds  `json:"testTimeoutSeconds,omitempty"`
	TestMemory  uint64   `json:"testMemoryBytes,omitempty"`
	TestUEFI    bool     `json:"testUEFI,omitempty"`
	TestQEMU    []string `json:"testQEMU,omitempty"` // further arguments

	CopyTo           string  `json:"copyTo,omitempty"` // another repository
	CopyPasswordFile string  `json:"copyPasswordFile,omitempty"`
	CopyLock         Seconds `json:"copyLockSeconds,omitempty"` // as Lock, for the copies

	WebhookFile string `json:"webhookFile,omitempty"` // its first line is the URL
	MailTo      string `json:"mailTo,omitempty"`
}

// Seconds is a duration in whole seconds.
type Seconds int64

// Duration is the same as a time.Duration.
func (s Seconds) Duration() time.Duration { return time.Duration(s) * time.Second }

// Bounds of policies.
const (
	MinEvery   = 60 // seconds
	maxEvery   = 10 * 365 * 24 * 3600
	day        = 24 * 3600
	maxVolumes = 1000
	maxText    = 4096 // bytes
)

var nameOf = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// CheckName accepts names of policies.
func CheckName(name string) error {
	if !nameOf.MatchString(name) {
		return fmt.Errorf("policy name %q: want letters, digits, '_' and '-', at most 64, beginning with a letter or a digit: %w", name, block.ErrInvalid)
	}
	return nil
}

// Validate reports the first field that makes no sense, as block.ErrInvalid.
func (p *Policy) Validate() error {
	if err := CheckName(p.Name); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("policy %s: %s: %w", p.Name, fmt.Sprintf(format, args...), block.ErrInvalid)
	}
	if what := p.checkTargets(); what != "" {
		return bad("%s", what)
	}
	texts := append([]string{p.TestExpect, p.Group, p.Connect, p.Endpoint, p.Repository, p.PasswordFile, p.CopyTo, p.CopyPasswordFile, p.WebhookFile, p.MailTo}, slices.Concat(p.Volumes, p.Domains, p.Identities, p.GuestAgents, p.TestGuests, p.TestQEMU)...)
	for name, paths := range p.Files {
		if name == "" || len(name) > 200 || len(paths) == 0 || len(paths) > maxVolumes {
			return bad("files %q: want a name and paths", name)
		}
		texts = append(append(texts, name), paths...)
	}
	for _, text := range texts {
		if len(text) > maxText {
			return bad("%q… is longer than %d B", text[:40], maxText)
		}
		if strings.ContainsFunc(text, unicode.IsControl) {
			return bad("%q has control characters", text)
		}
	}
	switch {
	case p.Repository == "":
		return bad("it needs a repository")
	case p.Every < MinEvery || p.Every > maxEvery:
		return bad("every %v: want a minute to ten years", p.Every.Duration())
	case p.At != "" && p.Every%day != 0:
		return bad("at %s, every %v: a time of day goes with whole days", p.At, p.Every.Duration())
	case p.PruneEvery < 0 || p.PruneEvery > maxEvery || p.VerifyEvery < 0 || p.VerifyEvery > maxEvery || p.TestEvery < 0 || p.TestEvery > maxEvery:
		return bad("prune, verify or test less often than every ten years, or in negative time")
	case p.TestEvery == 0 && (len(p.TestGuests) > 0 || p.TestExpect != "" || p.TestAgent || p.TestTimeout != 0 || p.TestMemory != 0 || p.TestUEFI || len(p.TestQEMU) > 0):
		return bad("how restores are tested, and not how often")
	case p.Lock < 0 || p.Lock > maxEvery || p.CopyLock < 0 || p.CopyLock > maxEvery:
		return bad("a lock of %v, and of %v for copies: want ten years at most, as nobody can take it back", p.Lock.Duration(), p.CopyLock.Duration())
	case p.CopyLock > 0 && p.CopyTo == "":
		return bad("a lock of copies, and no copies")
	case p.TestTimeout < 0 || p.TestTimeout > day:
		return bad("a test of %v: want a day at most", p.TestTimeout.Duration())
	case p.VerifyPercent < 0 || p.VerifyPercent > 100:
		return bad("verify %d %%: want 0 to 100", p.VerifyPercent)
	}
	if _, _, err := p.clock(); err != nil {
		return bad("%v", err)
	}
	if err := p.Keep.Validate(); err != nil {
		return fmt.Errorf("policy %s: %w", p.Name, err)
	}
	for _, guest := range p.TestGuests {
		if !p.knowsGuest(guest) {
			return bad("test of %q: want volumes of the policy, with commas between, or one of its domains", guest)
		}
	}
	if _, err := regexp.Compile(p.TestExpect); err != nil {
		return bad("%v", err)
	}
	return nil
}

// clock reads At.
func (p *Policy) clock() (hour, minute int, err error) {
	if p.At == "" {
		return 0, 0, nil
	}
	t, err := time.Parse("15:04", p.At)
	if err != nil {
		return 0, 0, fmt.Errorf("at %q: want HH:MM", p.At)
	}
	return t.Hour(), t.Minute(), nil
}

// Tag is what the backups of a policy have, by which its retention finds them.
func (p *Policy) Tag() string { return "policy:" + p.Name }
