package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// errProblems means that a verification found something, which it has said.
var errProblems = errors.New("damage was found")

func newRepo(a *app) *cobra.Command {
	c := console.Group(&cobra.Command{Use: "repo", Short: "Make, verify, repair and look at a repository"})
	c.AddCommand(newRepoInit(a), newRepoVerify(a), newRepoRepair(a), newRepoStats(a), newRepoKey(a))
	return c
}

// slotMaker is how a command seals keys for somebody: for age recipients, or under a passphrase.
type slotMaker struct {
	a          *app
	recipients []string
	label      string
}

func (s *slotMaker) flags(c *cobra.Command) {
	c.Flags().StringArrayVar(&s.recipients, "recipient", nil, "seal the keys for this age recipient (age1… or age1pq1…) instead of a passphrase; may be repeated")
	c.Flags().StringVar(&s.label, "label", "", "whose keys these are, for key list")
}

// slot seals keys. passphrase says where a new one comes from.
func (s *slotMaker) slot(k *seal.Keys, passphrase func() ([]byte, error)) (*seal.Slot, error) {
	if len(s.recipients) == 0 {
		p, err := passphrase()
		if err != nil {
			return nil, err
		}
		return k.PassphraseSlot(p, s.label)
	}
	all, err := age.ParseRecipients(strings.NewReader(strings.Join(s.recipients, "\n")))
	if err != nil {
		return nil, console.Usagef("recipients: %v", err)
	}
	return k.RecipientSlot(all, s.label)
}

func newRepoInit(a *app) *cobra.Command {
	s := &slotMaker{a: a}
	var average units.Size
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a repository in an empty place",
		Long: `Make a repository in a directory that is missing or empty, under a prefix of a bucket with nothing under it, or at another hvd. Its keys are made now and sealed under a passphrase, or for age recipients. Who loses all of these loses the backups:
there is no other way in.`,
		Example: `  hv-backup repo init --repo /mnt/backup/vms
  hv-backup repo init --repo hvd://backup.example/vms --tls-cert admin-cert.pem --tls-key admin-key.pem --tls-ca ca-cert.pem
  hv-backup repo init --repo /mnt/backup/vms --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p`,
		Args: console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			where, err := a.location()
			if err != nil {
				return err
			}
			cut := cdc.Default()
			if average != 0 {
				cut.Min, cut.Avg, cut.Max = uint32(average/4), uint32(average), uint32(average*4)
			}
			if err := cut.Validate(); err != nil {
				return err
			}
			b, err := a.newBackend(c.Context(), where)
			if err != nil {
				return err
			}
			r, err := repository.Init(c.Context(), b, cut, func(k *seal.Keys) (*seal.Slot, error) {
				return s.slot(k, func() ([]byte, error) {
					got, err := a.credentials(c.Context(), true)
					return got.Passphrase, err
				})
			})
			if err != nil {
				return fmt.Errorf("make a repository in %s: %w", where, err)
			}
			return a.show(map[string]any{"repository": where, "id": r.ID()}, func() { a.say("made repository %s in %s", r.ID(), where) })
		},
	}
	s.flags(c)
	c.Flags().Var(&average, "chunk", "average size of what is deduplicated, a power of two from 1KiB to 1MiB (default 16KiB)")
	return c
}

func newRepoStats(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "stats",
		Short:   "Tell how much the repository holds, and of a host's quotas",
		Example: "  hv-backup repo stats --repo /mnt/backup/vms\n  hv-backup repo stats --repo hvd://store.example/vms -o json | jq '.quotaBytes - .usedBytes'",
		Args:    console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.openIndexed(c.Context())
			if err != nil {
				return err
			}
			stats := r.Index().Stats()
			out := map[string]any{"id": r.ID(), "created": r.Config().Created, "cut": r.Config().Cut.String(), "packs": stats.Packs, "chunks": stats.Chunks, "rawBytes": stats.RawBytes, "packBytes": stats.PackBytes}
			list := [][2]string{
				{"repository", r.ID()}, {"location", r.Location()}, {"made", r.Config().Created.Local().Format(time.DateTime)}, {"cut", r.Config().Cut.String()},
				{"packs", fmt.Sprint(stats.Packs)}, {"chunks", fmt.Sprint(stats.Chunks)}, {"unique data", units.Size(stats.RawBytes).Human()}, {"stored", units.Size(stats.PackBytes).Human()},
			}
			quota, err := r.Quota(c.Context())
			if err != nil {
				return err
			}
			if quota.LimitBytes > 0 {
				out["usedBytes"], out["quotaBytes"] = quota.UsedBytes, quota.LimitBytes
				list = append(list, [2]string{"held at its host", usedText(quota.UsedBytes, quota.LimitBytes)})
			}
			if quota.PeerLimitBytes > 0 {
				out["peer"], out["peerUsedBytes"], out["peerQuotaBytes"] = quota.Peer, quota.PeerUsedBytes, quota.PeerLimitBytes
				list = append(list, [2]string{"stored by " + quota.Peer, usedText(quota.PeerUsedBytes, quota.PeerLimitBytes) + ", in all repositories of the host"})
			}
			if r.Keys().CanRead() {
				all, err := r.Manifests(c.Context(), a.warn)
				if err != nil {
					return err
				}
				logical := uint64(0)
				for _, m := range all {
					logical += m.NonZero
				}
				out["backups"], out["nonZeroBytes"] = len(all), logical
				list = append(list, [2]string{"backups", fmt.Sprint(len(all))}, [2]string{"their data", units.Size(logical).Human()})
				if stats.PackBytes > 0 {
					list = append(list, [2]string{"ratio", fmt.Sprintf("%.1f : 1", float64(logical)/float64(stats.PackBytes))})
				}
			}
			return a.show(out, func() { console.Pairs(a.out, list) })
		},
	}
}

// usedText says how much of a quota is taken.
func usedText(used, quota uint64) string {
	return fmt.Sprintf("%s of %s (%d%%)", units.Size(used).Human(), units.Size(quota).Human(), used/max(1, quota/100))
}

func newRepoVerify(a *app) *cobra.Command {
	var percent percentFlag
	c := &cobra.Command{
		Use:   "verify",
		Short: "Verify that every backup can be restored",
		Long: `Verify that all pages of every backup are there, that the index knows every chunk that they name, and that every pack of the index is there. With --read-data packs are read to
the last byte too, all of them or that many of 100, chosen at random. Exit code 5 means that damage was found. It needs an owner's keys.

In a bucket with object lock it also says which locked objects somebody has deleted or replaced, as far as that is possible: "repo repair" brings them back. And it asks whether every pack
that a locked backup needs is locked as long as that, which is not so after it was mended by something else than a repair: "repo repair" locks what is not.`,
		Example: `  hv-backup repo verify --repo /mnt/backup/vms
  hv-backup repo verify --read-data=10% --repo /mnt/backup/vms`,
		Aliases: []string{"check"},
		Args:    console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			hidden, err := a.hidden(c.Context(), true)
			if err != nil {
				return err
			}
			r, err := a.openIndexed(c.Context())
			if err != nil {
				return hiddenError(err, hidden)
			}
			type problem struct {
				What  string `json:"what"`
				Error string `json:"error"`
			}
			problems := []problem{}
			meter := a.newMeter("verifying", 0)
			got, err := backup.Verify(c.Context(), r, backup.Verification{
				DataPercent: int(percent),
				Problem:     func(what string, err error) { problems = append(problems, problem{what, err.Error()}) },
				Progress:    func(done, total uint64) { meter.Total = total; meter.At(done) },
			})
			meter.End()
			if err != nil {
				return err
			}
			err = a.show(map[string]any{"verified": got, "problems": problems, "hidden": hidden}, func() {
				for _, p := range problems {
					a.say("%s: %s", p.What, p.Error)
				}
				locked := ""
				if got.Locked > 0 {
					locked = fmt.Sprintf(", %d of them locked,", got.Locked)
				}
				a.say("%s%s with %d chunks, %s read (%s)", console.Counted(got.Backups, "backup"), locked, got.Chunks, console.Counted(got.Packs, "pack"), units.Size(got.DataBytes).Human())
			})
			if err == nil && len(hidden) > 0 {
				err = fmt.Errorf("%s: `hv-backup repo repair` brings them back: %w", console.Counted(len(hidden), "hidden object"), errProblems)
			}
			if err == nil && got.Problems > 0 {
				err = fmt.Errorf("%s: %w", console.Counted(got.Problems, "problem"), errProblems)
			}
			return err
		},
	}
	c.Flags().Var(&percent, "read-data", "read packs, all or PERCENT%")
	c.Flags().Lookup("read-data").NoOptDefVal = "100%"
	return c
}

// percentFlag is a number from 0 to 100.
type percentFlag int

// String implements pflag.Value.
func (p *percentFlag) String() string { return fmt.Sprintf("%d%%", int(*p)) }

// Set implements pflag.Value.
func (p *percentFlag) Set(text string) error {
	var n int
	if _, err := fmt.Sscanf(strings.TrimSuffix(text, "%")+"\n", "%d\n", &n); err != nil || n < 0 || n > 100 {
		return fmt.Errorf("%q is no percentage from 0%% to 100%%", text)
	}
	*p = percentFlag(n)
	return nil
}

// Type implements pflag.Value.
func (p *percentFlag) Type() string { return "percent" }

func newRepoKey(a *app) *cobra.Command {
	c := console.Group(&cobra.Command{Use: "key", Short: "List and add keys that open the repository"})
	c.AddCommand(newKeyList(a), newKeyAdd(a))
	return c
}

func newKeyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the key slots; it needs no key",
		Example: "  hv-backup repo key list --repo /mnt/backup/vms",
		Args:    console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			b, err := a.backend()
			if err != nil {
				return err
			}
			slots, err := repository.ListSlots(c.Context(), b)
			if err != nil {
				return err
			}
			type slot struct {
				Name    string    `json:"name"`
				Role    string    `json:"role"`
				Kind    string    `json:"kind"`
				Label   string    `json:"label"`
				Created time.Time `json:"created"`
			}
			list, rows := []slot{}, [][]string{}
			for _, s := range slots {
				kind := "age"
				if s.Argon2id != nil {
					kind = "passphrase"
				}
				list = append(list, slot{s.Name, s.Role, kind, s.Label, s.Created})
				rows = append(rows, []string{s.Name[:min(8, len(s.Name))], s.Role, kind, s.Created.Local().Format(time.DateTime), s.Label})
			}
			return a.show(list, func() { console.Table(a.out, a.getenv, []string{"SLOT", "ROLE", "KIND", "MADE", "LABEL"}, rows) })
		},
	}
}

func newKeyAdd(a *app) *cobra.Command {
	s := &slotMaker{a: a}
	var newPassword string
	var writer bool
	c := &cobra.Command{
		Use:   "add",
		Short: "Seal the keys for somebody else",
		Long: `Seal the keys of the repository once more: for age recipients, or under the passphrase in --new-password-file. With --writer only those that suffice to store backups: they
neither read data nor list backups, so a host that is taken over gives nothing away.`,
		Example: `  hv-backup repo key add --writer --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p --label web1
  hv-backup repo key add --new-password-file second.txt`,
		Args: console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if newPassword == "" && len(s.recipients) == 0 {
				return console.Usagef("for whom? give --recipient or --new-password-file")
			}
			r, err := a.open(c.Context())
			if err != nil {
				return err
			}
			role := seal.RoleOwner
			err = r.AddSlot(c.Context(), func(k *seal.Keys) (*seal.Slot, error) {
				if writer || !k.CanRead() {
					k, role = k.Writer(), seal.RoleWriter
				}
				return s.slot(k, func() ([]byte, error) { return passphraseOf(newPassword) })
			})
			if err != nil {
				return err
			}
			return a.show(map[string]string{"role": role, "label": s.label}, func() {
				a.say("added the keys of %s %s", map[string]string{seal.RoleOwner: "an", seal.RoleWriter: "a"}[role], role)
			})
		},
	}
	s.flags(c)
	c.Flags().StringVar(&newPassword, "new-password-file", "", "file with the new passphrase in its first line")
	c.Flags().BoolVar(&writer, "writer", false, "only what suffices to store backups")
	return c
}

// complete finds the one backup whose name begins with a prefix; "latest" is the youngest.
func complete(ctx context.Context, a *app, r *repository.Repository, name string) (*repository.Manifest, error) {
	all, err := r.Manifests(ctx, a.warn)
	if err != nil {
		return nil, err
	}
	return choose(all, name)
}
