package api

import (
	"context"

	"github.com/hyper-nixos/hyper-nixos/api/generated"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

// resolver answers GraphQL with the use cases of control.
type resolver struct {
	control *control.Control
	door    *door
}

// Query implements generated.ResolverRoot.
func (r *resolver) Query() generated.QueryResolver { return query{r} }

// Mutation implements generated.ResolverRoot.
func (r *resolver) Mutation() generated.MutationResolver { return mutation{r} }

type query struct{ *resolver }

func (q query) Status(context.Context) (control.Status, error) { return q.control.Status(), nil }

func (q query) Volumes(context.Context) ([]generated.Volume, error) {
	volumes := q.control.Volumes()
	list := make([]generated.Volume, 0, len(volumes))
	for _, v := range volumes {
		list = append(list, volumeOf(v))
	}
	return list, nil
}

func (q query) Volume(_ context.Context, name string) (generated.Volume, error) {
	v, err := q.control.Volume(name)
	return volumeOf(v), err
}

func (q query) Snapshots(_ context.Context, volume string) ([]control.Snapshot, error) {
	return q.control.Snapshots(volume)
}

func (q query) Bitmaps(_ context.Context, volume string) ([]control.Bitmap, error) {
	return q.control.Bitmaps(volume)
}

func (q query) VolumeGroups(context.Context) ([]control.VolumeGroup, error) {
	return q.control.Groups(), nil
}

func (q query) Schedules(context.Context) ([]generated.Schedule, error) {
	list := []generated.Schedule{}
	for _, s := range q.control.Schedules() {
		list = append(list, scheduleOf(s))
	}
	return list, nil
}

func (q query) Retention(_ context.Context, target string, keep retention.Rules) ([]control.Verdict, error) {
	return q.control.Retention(target, keep)
}

func (q query) SnapshotFrees(ctx context.Context, volume, name string) (uint64, error) {
	return q.control.SnapshotFrees(ctx, volume, name)
}

func (q query) Attachments(context.Context) ([]control.Attachment, error) {
	return q.control.Attachments(), nil
}

func (q query) History(_ context.Context, volume string) (control.History, error) {
	h, err := q.control.History(volume)
	if err != nil {
		return control.History{}, err
	}
	return *h, nil
}

func (q query) HistoryPoints(ctx context.Context, volume string, after uint64, first int, labelled bool) ([]control.HistoryPoint, error) {
	return q.control.HistoryPoints(ctx, volume, after, first, labelled)
}

func (q query) SnapshotExport(_ context.Context, volume, snapshot string) (control.Attachment, error) {
	return q.control.SnapshotExport(volume, snapshot)
}

func (q query) Stats(context.Context) (generated.Stats, error) {
	return statsOf(q.control.Stats()), nil
}

func (q query) Settling(context.Context) (control.Settling, error) { return q.control.Settling(), nil }

func (q query) Garbage(context.Context) (control.Garbage, error) { return q.control.Garbage(), nil }

func (q query) Index(context.Context) (control.Index, error) { return q.control.Index(), nil }

func (q query) Scrub(context.Context) (control.Scrub, error) { return q.control.Scrub(), nil }

func (q query) Disks(context.Context) (control.Disks, error) { return q.control.Disks(), nil }

func (q query) Explaining(context.Context) (control.Explaining, error) {
	return q.control.Explaining(), nil
}

func (q query) Damages(context.Context) ([]control.Damage, error) { return q.control.Damages(), nil }

func (q query) Tokens(context.Context) ([]control.Token, error) {
	return q.control.Tokens().List(), nil
}
