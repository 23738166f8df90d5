package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// repairing is the command repo repair.
type repairing struct {
	a            *app
	o            backup.Repairing
	from         string
	passwordFile string // of --from
	identities   []string
	volumes      []string // VOLUME or VOLUME@SNAPSHOT
	files        []string
}

func newRepoRepair(a *app) *cobra.Command {
	p := &repairing{a: a}
	c := &cobra.Command{
		Use:   "repair",
		Short: "Mend a repository whose packs, indexes or backups are damaged or gone",
		Long: `Mend a repository as far as what it has lost is to be had anywhere. Every pack is read. What is whole in damaged packs is stored again; what is lost is looked for, in this order: in
other packs of the repository; in --from, another repository, which may have other keys; in --from-volume, a volume of hvd or one of its snapshots, and --from-file, an image, where data
that has not changed since the backup lies at the same place. Nothing of these is trusted: only what has the very hash of a lost piece is taken. A volume without a snapshot gets one for
the time of the repair.

An index that is gone or damaged is made anew from the packs. A backup whose manifest cannot be read is taken from --from, if that is a copy of this repository or has a copy of the
backup, and gets another name; --missing-backups brings back those, too, that are not here at all and may have been forgotten on purpose.

In a bucket with object lock it begins with what is locked and somebody has deleted or replaced, as far as that is possible: what lies over it is removed. It ends with locking what locked
backups need and what is not locked as long as they: what was mended, and what lies in other packs now.

Damaged packs are marked: no backup relies on them any more, and ` + "`hv-backup prune`" + ` deletes them. What cannot be mended is listed, with its offsets; backups stay readable but for that. Backups and
prunes may run meanwhile. Whatever stops a repair, the repository is no worse, and another repair goes on. It needs an owner's keys.

Exit code 5 means that something stays lost, or, with --dry-run, that something is damaged.`,
		Example: `  hv-backup repo repair --dry-run --repo /mnt/backup/vms
  hv-backup repo repair --from s3://bucket/vms --repo /mnt/backup/vms
  hv-backup repo repair --from-volume web1 --from-volume db1@monday --repo /mnt/backup/vms
  hv-backup repo repair --from-file old-disk.raw -o json --repo /mnt/backup/vms`,
		Args: console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error { return p.run(c.Context()) },
	}
	flags := c.Flags()
	flags.StringVar(&p.from, "from", "", "another repository that may have what is lost")
	flags.StringVar(&p.passwordFile, "from-password-file", "", "file with the passphrase of --from in its first line")
	flags.StringArrayVar(&p.identities, "from-identity", nil, "file with age identities for --from; may be repeated")
	flags.StringArrayVar(&p.volumes, "from-volume", nil, "`VOLUME[@SNAPSHOT]` of hvd that may have what is lost; may be repeated")
	flags.StringArrayVar(&p.files, "from-file", nil, "raw image or block device that may have what is lost; may be repeated")
	flags.BoolVar(&p.o.MissingBackups, "missing-backups", false, "bring back backups that are not here, from --from")
	flags.BoolVar(&p.o.Quick, "quick", false, "do not read packs whose size is right")
	flags.BoolVar(&p.o.DryRun, "dry-run", false, "only say what is damaged, and what could be mended")
	_ = c.RegisterFlagCompletionFunc("from-volume", func(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.volumesOf(c.Context()), cobra.ShellCompDirectiveNoFileComp
	})
	return c
}

func (p *repairing) run(ctx context.Context) (err error) {
	if p.o.MissingBackups && p.from == "" {
		return console.Usagef("--missing-backups: from where? give --from")
	}
	hidden, err := p.a.hidden(ctx, p.o.DryRun) // before the repository is opened, whose config may be among it
	if err != nil {
		return err
	}
	r, err := p.a.open(ctx)
	if err != nil {
		if p.o.DryRun {
			err = hiddenError(err, hidden)
		}
		return err
	}
	end, err := p.sources(ctx)
	defer func() { err = errors.Join(err, end()) }()
	if err != nil {
		return err
	}
	told := make(map[string]bool)
	p.o.Warn = func(what string, err error) {
		if line := fmt.Sprintf("hv-backup: %s: %v", what, strings.ReplaceAll(err.Error(), "\n", "; ")); !told[line] {
			told[line] = true
			p.a.note("%s", line)
		}
	}
	meter := p.a.newMeter(backup.PhaseReadPacks, 0)
	defer func() { meter.End() }()
	p.o.Progress = func(phase string, done, total uint64) {
		if phase != meter.What { // rates are of a phase
			meter.End()
			meter = p.a.newMeter(phase, total)
		}
		meter.Total = total
		meter.At(done)
	}
	began := time.Now()
	got, err := backup.Repair(ctx, r, p.o)
	meter.End()
	if err != nil && !errors.Is(err, repository.ErrUnlocked) {
		return err
	}
	notLocked := err
	out := struct {
		backup.Repaired
		Hidden  []hiddenObject `json:"hidden"` // was brought back, or with --dry-run would be
		Seconds float64        `json:"seconds"`
	}{got, hidden, time.Since(began).Seconds()}
	if err := p.a.show(out, func() { p.say(&got) }); err != nil {
		return err
	}
	switch {
	case notLocked != nil:
		return notLocked
	case got.Lost():
		return fmt.Errorf("not all of what is damaged can be mended from here; another --from, --from-volume or --from-file may have the rest, and `hv-backup run --full` stores anew what has not changed since: %w", errProblems)
	case got.DryRun && (got.Found() || len(hidden) > 0):
		return fmt.Errorf("it can be mended, by the same command without --dry-run: %w", errProblems)
	}
	return nil
}

// sources opens what may have what is lost. end closes it, also after an error.
func (p *repairing) sources(ctx context.Context) (end func() error, err error) {
	var ends []func() error
	end = func() (err error) {
		for _, f := range ends {
			err = errors.Join(err, f())
		}
		return err
	}
	if p.from != "" {
		other, err := p.a.other(p.from, "HV_FROM_", p.passwordFile, p.identities).openIndexed(ctx)
		if err != nil {
			return end, fmt.Errorf("--from: %w", err)
		}
		p.o.From = append(p.o.From, backup.RepairFrom{Name: p.from, Repository: other})
	}
	for _, name := range p.volumes {
		content, remove, err := p.a.volumeContent(ctx, name)
		if err != nil {
			return end, fmt.Errorf("--from-volume %s: %w", name, err)
		}
		ends = append(ends, remove)
		p.o.From = append(p.o.From, backup.RepairFrom{Name: name, Content: content, Source: content.snapshot.Volume})
	}
	for _, name := range p.files {
		path, err := filepath.Abs(name)
		if err != nil {
			return end, err
		}
		f, err := openImage(path)
		if err != nil {
			return end, fmt.Errorf("--from-file: %w", err)
		}
		ends = append(ends, f.Close)
		p.o.From = append(p.o.From, backup.RepairFrom{Name: name, Content: f, Source: path})
	}
	return end, nil
}

// volumeContent returns a snapshot of a volume as content. Without a name of one it takes one, which remove deletes.
func (a *app) volumeContent(ctx context.Context, name string) (content snapshotRange, remove func() error, err error) {
	volume, snapshot, named := strings.Cut(name, "@")
	api, err := a.hvd()
	if err != nil {
		return content, nil, err
	}
	content.api, remove = api, func() error { return nil }
	if named {
		reply, err := client.ListSnapshots(ctx, api, volume)
		if err != nil {
			return content, nil, err
		}
		for _, s := range reply.Snapshots {
			if s.Name == snapshot {
				content.snapshot = s
				return content, remove, nil
			}
		}
		return content, nil, fmt.Errorf("snapshot %q: %w", name, block.ErrNotFound)
	}
	taken, err := takeSnapshots(ctx, api, "repair-"+time.Now().UTC().Format("20060102t150405.000000z"), []string{volume}, "")
	if err != nil {
		return content, nil, err
	}
	content.snapshot = taken[0]
	return content, func() error {
		err := deleteSnapshot(context.WithoutCancel(ctx), api, volume, content.snapshot.Name)
		if err != nil {
			err = fmt.Errorf("delete the snapshot of this repair; `hv-storage-fabric snapshot delete %s@%s` does: %w", volume, content.snapshot.Name, err)
		}
		return err
	}, nil
}

// imageContent is an image or a block device as content that can be read anywhere.
type imageContent struct {
	*os.File
	size uint64
}

func openImage(path string) (*imageContent, error) {
	known, err := backup.OpenFile(path)
	if err != nil {
		return nil, err
	}
	size := known.Size()
	if err := known.Close(); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	return &imageContent{f, size}, err
}

// Size implements backup.RangeSource.
func (f *imageContent) Size() uint64 { return f.size }

// ReadRange implements backup.RangeSource.
func (f *imageContent) ReadRange(_ context.Context, p []byte, off uint64) error {
	_, err := f.ReadAt(p, int64(off))
	return err
}

// maxSaidRanges is how many ranges of a backup are shown to people; -o json has more.
const maxSaidRanges = 10

func (p *repairing) say(got *backup.Repaired) {
	would := func(did, wouldDo string) string {
		if got.DryRun {
			return wouldDo
		}
		return did
	}
	a := p.a
	if !got.Found() {
		a.say("%s and %s looked at: nothing is damaged", console.Counted(got.Packs, "pack"), console.Counted(got.Backups, "backup"))
		return
	}
	for _, d := range got.DamagedPacks {
		a.say("pack %s is %s", d.Name, d.Problem)
	}
	for _, key := range got.DamagedRuns {
		a.say("%s cannot be read; %s", key, would("its packs are listed anew, and it was removed", "its packs would be listed anew, and it be removed"))
	}
	if n := len(got.UnlistedPacks); n > 0 {
		a.say("%s in no index; %s", console.Counted(n, "pack"), would("now in a new one", "would be put into a new one"))
	}
	for _, m := range got.Manifests {
		switch {
		case m.As != "":
			a.say("backup %s is back as %s, from %s", m.Name, m.As, m.From)
		case m.From != "":
			a.say("backup %s would be taken from %s", m.Name, m.From)
		default:
			a.say("backup %s cannot be read, and nobody knows of what it is; `hv-backup forget %s` removes it", m.Name, m.Name)
		}
	}
	for _, by := range got.Mended {
		a.say("%s %s (%s) from %s", would("mended", "would mend"), console.Counted(by.Chunks, "chunk"), units.Size(by.Bytes).Human(), by.From)
	}
	for i := range got.Damaged {
		b := &got.Damaged[i]
		if b.LostBytes == 0 {
			a.say("backup %s of %s %s: %s", b.Name, b.Kind, b.Source, would("mended", "would be mended"))
			continue
		}
		a.say("backup %s of %s %s: %s of its content lost, everything else can be read", b.Name, b.Kind, b.Source, units.Size(b.LostBytes).Human())
		for j, lost := range b.Lost {
			if j == maxSaidRanges {
				a.say("  and %d others: -o json lists them", len(b.Lost)+b.MoreLost-j)
				break
			}
			a.say("  %d B at %d", lost.Length, lost.Offset)
		}
	}
	if n := got.UnlockedObjects; n > 0 {
		a.say("%s of locked backups not locked as long as these; %s", console.Counted(n, "object"), would(fmt.Sprintf("%d locked for that, runs of the index among them", got.LockedObjects), "they would be locked"))
	}
	if n := len(got.DamagedPacks); n > 0 && !got.DryRun {
		a.say("damaged packs are relied on no more; `hv-backup prune` deletes them, a day from now or later")
	}
}
