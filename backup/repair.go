package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// RepairFrom is a place that may have what a repository has lost: another repository, or content that a backup may have been made of. Neither is trusted: only what hashes to a lost id is taken.
type RepairFrom struct {
	Name string // for people

	Repository *repository.Repository // with its index loaded and an owner's keys, or

	Content RangeSource // as it is now
	Source  string      // what backups of it are called; backups of other sources are tried, too, but for directories
}

// Repairing says how to repair.
type Repairing struct {
	// From are places to look in for what the repository does not have itself, in this order.
	From []RepairFrom
	// MissingBackups brings back backups that are not there, and that a repository of From has, or has a copy of. They may have been forgotten on purpose.
	MissingBackups bool
	// Quick reads only packs whose size is wrong: flipped bits in others are not found.
	Quick bool
	// DryRun changes nothing, and says what could be mended.
	DryRun bool
	// Warn is told what is damaged, and what could not be asked; it may be nil.
	Warn func(what string, err error)
	// Progress is told how far a phase is, in bytes; it may be nil.
	Progress func(phase string, done, total uint64)
}

// Phases of a repair, for Progress, besides PhaseLook.
const (
	PhaseReadPacks = "reading packs"
	PhaseMend      = "mending" // bytes of damaged backups
)

// MendedBy is what came from one place.
type MendedBy struct {
	From   string `json:"from"`
	Chunks int    `json:"chunks"` // pages and directories too
	Bytes  uint64 `json:"bytes"`
}

// RepairedBackup is a backup of which something was damaged.
type RepairedBackup struct {
	Name        string      `json:"name"`
	Kind        string      `json:"kind"` // of its source
	Source      string      `json:"source"`
	MendedBytes uint64      `json:"mendedBytes"` // chunks that were found for it first; what several backups need counts once
	LostBytes   uint64      `json:"lostBytes"`   // of its content
	Lost        []LostRange `json:"lost"`        // the first maxLostRanges of what cannot be read of it
	MoreLost    int         `json:"moreLost"`    // others

	m *repository.Manifest
}

// LostRange is a range of content, in bytes, that cannot be read.
type LostRange struct {
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
}

// maxLostRanges bounds the ranges of one backup that are listed.
const maxLostRanges = 10000

// RepairedManifest is a backup whose manifest cannot be read, or that is not there, or that has lost what only a copy of it, made anew, has.
type RepairedManifest struct {
	Name  string `json:"name"`
	Error string `json:"error,omitempty"` // empty: it is not there
	From  string `json:"from,omitempty"`  // where another one was found
	As    string `json:"as,omitempty"`    // its name now; none with DryRun
}

// Repaired is what a repair found and did, or with DryRun would do.
type Repaired struct {
	Packs         int                      `json:"packs"` // that were looked at
	DamagedPacks  []repository.DamagedPack `json:"damagedPacks"`
	DamagedRuns   []string                 `json:"damagedIndexes"`
	UnlistedPacks []string                 `json:"unlistedPacks"` // whole, and in no index
	Manifests     []RepairedManifest       `json:"manifests"`
	Backups       int                      `json:"backups"` // that were looked at
	Damaged       []RepairedBackup         `json:"damagedBackups"`
	Mended        []MendedBy               `json:"mended"`
	StoredBytes   uint64                   `json:"storedBytes"`
	DryRun        bool                     `json:"dryRun"`

	UnlockedObjects int `json:"unlockedObjects"` // packs and manifests of locked backups that were not locked as long as these: new ones with what was mended, too, but not with DryRun
	LockedObjects   int `json:"lockedObjects"`   // that were locked for that, with runs of the index
}

// Found reports whether anything was damaged, or not locked and should have been.
func (d *Repaired) Found() bool {
	return len(d.DamagedPacks)+len(d.DamagedRuns)+len(d.UnlistedPacks)+len(d.Manifests)+len(d.Damaged)+d.UnlockedObjects > 0
}

// Lost reports whether something stays damaged that a backup needs.
func (d *Repaired) Lost() bool {
	return slices.ContainsFunc(d.Damaged, func(b RepairedBackup) bool { return b.LostBytes > 0 }) ||
		slices.ContainsFunc(d.Manifests, func(m RepairedManifest) bool { return m.Error != "" && m.From == "" })
}

// repair is one repair.
type repair struct {
	r       *repository.Repository
	o       Repairing
	out     *Repaired
	mending *repository.Mending
	reader  *repository.Reader
	w       *repository.Writer // nil: a dry run
	hasher  *dedup.Hasher
	cutter  *cdc.Cutter
	lengths []uint32

	mended  map[block.Hash]bool                 // ids of what was found
	nodes   map[block.Hash][]byte               // pages and directories of these
	whole   map[block.Hash]bool                 // pages and directories, all of which is there
	lostIDs map[block.Hash]*repository.Manifest // of the walks since it was emptied, with a backup that needs them
	damaged map[*repository.Manifest]*RepairedBackup
}

// Repair mends a repository as far as its own packs and o.From have what it has lost, and says what stays lost; all else of the backups stays readable. Backups, and prunes, may run meanwhile. It only adds
// objects until everything that it found is durable; then runs of the index and manifests go that cannot be read, and damaged packs are marked for the next prune. In the end all that locked backups need, and they themselves, is locked as long as they say; if that alone fails, out says what was mended, and the error is repository.ErrUnlocked. After an error or a crash the repository is no
// worse, and another repair goes on. It reads the index itself, and r must not be used for anything else meanwhile. It needs an owner's keys.
func Repair(ctx context.Context, r *repository.Repository, o Repairing) (out Repaired, err error) {
	out = Repaired{DryRun: o.DryRun, DamagedPacks: []repository.DamagedPack{}, DamagedRuns: []string{}, UnlistedPacks: []string{}, Manifests: []RepairedManifest{}, Damaged: []RepairedBackup{}, Mended: []MendedBy{}}
	p := &repair{r: r, o: o, out: &out}
	// Backups come first: what a backup needs is listed when it is there, so one that is made meanwhile is not taken for damaged.
	manifests, err := p.manifests(ctx)
	if err != nil {
		return out, err
	}
	p.mending, err = r.Mend(ctx, repository.MendOptions{Quick: o.Quick, Warn: p.warn, Progress: func(done, total uint64) { p.tell(PhaseReadPacks, done, total) }})
	if err != nil {
		return out, err
	}
	out.Packs, out.DamagedPacks, out.DamagedRuns, out.UnlistedPacks = p.mending.Packs, append(out.DamagedPacks, p.mending.Damaged...), append(out.DamagedRuns, p.mending.DamagedRuns...), append(out.UnlistedPacks, p.mending.Unlisted...)
	if p.cutter, err = cdc.NewCutter(r.Config().Cut); err != nil {
		return out, err
	}
	p.reader, p.hasher = r.NewReader(0), dedup.NewHasher(r.Keys().Domain)
	p.mended, p.nodes, p.whole, p.lostIDs = make(map[block.Hash]bool), make(map[block.Hash][]byte), make(map[block.Hash]bool), make(map[block.Hash]*repository.Manifest)
	p.damaged = make(map[*repository.Manifest]*RepairedBackup)
	revived, copies, err := p.lookForManifests(ctx, manifests)
	if err != nil {
		return out, err
	}
	for _, m := range revived {
		manifests = append(manifests, m.m)
	}
	left, err := p.mend(ctx, manifests)
	if err != nil {
		return out, err
	}
	anew, err := p.lookForCopies(ctx, left, manifests)
	if err != nil {
		return out, err
	}
	if err := p.restoreManifests(ctx, revived, copies); err != nil {
		return out, err
	}
	if err := p.copyAnew(ctx, anew); err != nil {
		return out, err
	}
	if err := p.survey(ctx); err != nil {
		return out, err
	}
	if !o.DryRun {
		err = p.mending.Finish(ctx, len(p.lostIDs), func(id block.Hash) bool { return p.lostIDs[id] != nil })
	}
	return out, errors.Join(err, p.relock(ctx))
}

func (p *repair) warn(what string, err error) {
	if p.o.Warn != nil {
		p.o.Warn(what, err)
	}
}

func (p *repair) tell(phase string, done, total uint64) {
	if p.o.Progress != nil {
		p.o.Progress(phase, done, total)
	}
}

// mend looks at all backups, and in one place after the other for what they have lost. It returns those that have holes still.
func (p *repair) mend(ctx context.Context, manifests []*repository.Manifest) (damaged []*repository.Manifest, err error) {
	if !p.o.DryRun {
		if p.w, err = p.r.NewWriter(ctx); err != nil {
			return nil, err
		}
		defer func() {
			stored, closeErr := finish(ctx, p.w, err)
			err = closeErr
			p.out.StoredBytes += stored.StoredBytes
		}()
	}
	p.out.Backups = len(manifests)
	itself := &filler{by: p.mendedBy("the repository itself"), chunk: p.mending.Salvage}
	damaged, err = p.walkAll(ctx, PhaseLook, manifests, func(context.Context, *repository.Manifest) ([]*filler, error) { return []*filler{itself}, nil })
	p.credit(itself.by)
	for i := range p.o.From {
		if err != nil || len(damaged) == 0 {
			return nil, err
		}
		damaged, err = p.mendFrom(ctx, &p.o.From[i], damaged)
	}
	return damaged, err
}

func (p *repair) mendedBy(name string) *MendedBy { return &MendedBy{From: name} }

// credit notes what came from a place, if anything did.
func (p *repair) credit(by *MendedBy) {
	if by.Chunks > 0 {
		p.out.Mended = append(p.out.Mended, *by)
	}
}

// walkAll walks over backups, with what may fill their holes, and returns those that have holes still.
func (p *repair) walkAll(ctx context.Context, phase string, manifests []*repository.Manifest, fillers func(context.Context, *repository.Manifest) ([]*filler, error)) (damaged []*repository.Manifest, err error) {
	done, total := uint64(0), uint64(0)
	for _, m := range manifests {
		total += m.SizeBytes
	}
	for _, m := range manifests {
		all, err := fillers(ctx, m)
		if err != nil {
			return nil, err
		}
		holes, err := p.fill(ctx, m, all)
		if err != nil {
			return nil, fmt.Errorf("backup %s: %w", m.Name, err)
		}
		if holes {
			damaged = append(damaged, m)
		}
		done += m.SizeBytes
		p.tell(phase, done, total)
	}
	return damaged, nil
}

// fill walks over a backup with one filler after the other until it has no holes, and closes them.
func (p *repair) fill(ctx context.Context, m *repository.Manifest, all []*filler) (holes bool, err error) {
	holes = true
	for _, f := range all {
		if holes && err == nil {
			holes, err = p.backup(ctx, m, f)
		}
		if f.close != nil {
			err = errors.Join(err, f.close())
		}
	}
	return holes, err
}

// survey lists what is lost for good.
func (p *repair) survey(ctx context.Context) error {
	clear(p.lostIDs)
	for _, b := range p.damaged {
		b.LostBytes, b.Lost, b.MoreLost = 0, []LostRange{}, 0
		if _, err := p.backup(ctx, b.m, &filler{by: p.mendedBy(""), list: b}); err != nil {
			return fmt.Errorf("backup %s: %w", b.m.Name, err)
		}
		p.out.Damaged = append(p.out.Damaged, *b)
	}
	slices.SortFunc(p.out.Damaged, func(a, b RepairedBackup) int {
		return slices.Compare([]byte(a.Name), []byte(b.Name))
	})
	return nil
}

// noteDamaged returns what is told of a backup with damage.
func (p *repair) noteDamaged(m *repository.Manifest) *RepairedBackup {
	b := p.damaged[m]
	if b == nil {
		b = &RepairedBackup{Name: m.Name, Kind: m.Source.Kind, Source: m.Source.Name, m: m}
		p.damaged[m] = b
	}
	return b
}

// add lists a range that is lost.
func (b *RepairedBackup) add(off, length uint64) {
	b.LostBytes += length
	if last := len(b.Lost) - 1; last >= 0 && b.MoreLost == 0 && b.Lost[last].Offset+b.Lost[last].Length == off {
		b.Lost[last].Length += length
	} else if len(b.Lost) < maxLostRanges {
		b.Lost = append(b.Lost, LostRange{off, length})
	} else {
		b.MoreLost++
	}
}

// isDamage tells damage of a repository from what keeps one from looking.
func isDamage(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrNotFound))
}
