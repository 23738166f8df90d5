package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/live"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// RestoreSpec is what a volume shall be that is restored while it is used.
type RestoreSpec struct {
	Name         string
	ContentBytes uint64 // of the backup
	Backup       string // its name and its repository, which have to be the same when the restore goes on
	Repository   string
	Chunking     string // empty: cdc
	Mode         string // empty: writeback
}

// RestoreConn is the connection to whoever has the backup.
type RestoreConn struct {
	Body io.Reader // a transfer.LiveReader's
	// Begin is told, before anything is read, that the volume is there and can be attached.
	Begin func(RestoreBegun) error
	// Want tells that a guest waits for a range. When it fails, so does Body.
	Want func(block.Range) error
	// Cut makes Body fail.
	Cut func()
}

// RestoreBegun is what whoever has the backup is told first.
type RestoreBegun struct {
	Volume       Volume
	ReachedBytes uint64 // where it should go on
	Resumed      bool
}

// RestoreLive makes a volume that can be used at once, takes its content from a connection, what guests wait for first, and returns when all of it is there and durable. If it fails before that, the volume stays: what has come
// can be read, reads of the rest wait, writes go on, and the same call with another connection goes on.
func (c *Control) RestoreLive(ctx context.Context, spec RestoreSpec, conn RestoreConn) error {
	if err := c.restoreLive(ctx, spec, conn); err != nil {
		return fmt.Errorf("restore volume %q: %w", spec.Name, err)
	}
	return nil
}

func (c *Control) restoreLive(ctx context.Context, spec RestoreSpec, conn RestoreConn) error {
	ctx, done, err := c.work(ctx)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	session := &restoreSession{cancel: cancel, over: make(chan struct{})}
	r, resumed, err := c.beginRestore(ctx, spec, session)
	if err != nil {
		return err
	}
	defer c.endSession(r)
	defer context.AfterFunc(ctx, conn.Cut)()
	if err := c.pull(ctx, r, conn, resumed); err != nil {
		state := r.live.State()
		c.log.Warn("a restore was interrupted: reads of what has not come wait, writes go on; run hv-backup restore --live again", "volume", spec.Name, "backup", spec.Backup,
			"reachedBytes", state.ReachedBytes, "contentBytes", state.ContentBytes, "waitingReads", state.Waiting, "error", err)
		return err
	}
	return c.completeRestore(ctx, r)
}

// beginRestore makes the volume, or finds the restore that is to go on, and makes the caller the one who pulls.
func (c *Control) beginRestore(ctx context.Context, spec RestoreSpec, session *restoreSession) (r *restoring, resumed bool, err error) {
	if spec.Backup == "" || len(spec.Backup) > maxName || spec.Repository == "" || len(spec.Repository) > maxName {
		return nil, false, fmt.Errorf("name the backup and its repository, in at most %d bytes each: %w", maxName, block.ErrInvalid)
	}
	checked, err := VolumeSpec{Name: spec.Name, Chunking: spec.Chunking, Mode: spec.Mode}.checkButSize()
	if err != nil {
		return nil, false, err
	}
	if spec.ContentBytes == 0 || spec.ContentBytes > block.MaxVolumeSize {
		return nil, false, checkSize(spec.ContentBytes)
	}
	checked.SizeBytes = roundUp(spec.ContentBytes)
	release, err := c.names.hold(ctx, "restore", spec.Name)
	if err != nil {
		return nil, false, err
	}
	defer release()
	if r = c.restoreOf(spec.Name); r != nil {
		return r, true, c.resumeRestore(r, spec, session)
	}
	if _, err := c.engine.Volume(spec.Name); !errors.Is(err, block.ErrNotFound) {
		return nil, false, errors.Join(err, block.ErrExists)
	}
	r, err = c.newRestore(ctx, spec, checked)
	if err != nil {
		return nil, false, err
	}
	c.mu.Lock()
	r.session = session
	c.mu.Unlock()
	return r, false, nil
}

// resumeRestore makes a session the one that goes on with a restore.
func (c *Control) resumeRestore(r *restoring, spec RestoreSpec, session *restoreSession) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := &r.record
	switch {
	case have.Backup != spec.Backup || have.Repository != spec.Repository || have.ContentBytes != spec.ContentBytes:
		return fmt.Errorf("it is being restored from backup %s of repository %s; go on with that, or delete the volume first: %w", have.Backup, have.Repository, ErrRefused)
	case r.problem != nil:
		return r.problem
	case r.session != nil:
		return fmt.Errorf("it is being restored by another hv-backup already: %w", block.ErrInUse)
	}
	r.session = session
	return nil
}

// maxRestore bounds the content of a volume that is restored while it is used, in bytes: as much as a backup has at most. Its marks are read whole at a start.
const maxRestore = 64 << 40

// newRestore makes the volume and what belongs to it. It gets its name when a crash would find the restore in restores.json.
func (c *Control) newRestore(ctx context.Context, spec RestoreSpec, checked blockstore.VolumeSpec) (r *restoring, err error) {
	if spec.ContentBytes > maxRestore {
		return nil, fmt.Errorf("content of %d B, at most %d B: %w", spec.ContentBytes, uint64(maxRestore), block.ErrInvalid)
	}
	ctx = context.WithoutCancel(ctx) // it is short, and whoever hung up can go on with it
	marks := blockstore.VolumeSpec{Name: restorePrefix + strings.ToLower(rand.Text()), SizeBytes: live.MarksSize(checked.SizeBytes)}
	checked.Name = importPrefix + strings.ToLower(rand.Text())
	if _, err := c.engine.CreateVolume(ctx, marks); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.discard(ctx, checked.Name), c.discard(ctx, marks.Name))
		}
	}()
	info, err := c.engine.CreateVolume(ctx, checked)
	if err != nil {
		return nil, err
	}
	r = &restoring{record: restoreRecord{
		Volume: checked.Name, UUID: info.UUID.String(), Marks: marks.Name, Backup: spec.Backup, Repository: spec.Repository, ContentBytes: spec.ContentBytes, BegunAt: c.opts.Now().UTC(),
	}}
	if err := c.openMarks(ctx, r); err != nil {
		return nil, err
	}
	r.record.Volume = spec.Name
	if err := c.nameRestore(ctx, r, checked.Name); err != nil {
		c.mu.Lock()
		delete(c.mu.restores, spec.Name)
		c.mu.Unlock()
		return nil, errors.Join(err, r.marks.Close(), c.saveRestores())
	}
	return r, nil
}

// nameRestore puts a restore into the table and on disk, and then gives the volume its name.
func (c *Control) nameRestore(ctx context.Context, r *restoring, hidden string) error {
	if err := r.marks.Flush(ctx); err != nil { // one log has both volumes
		return err
	}
	c.mu.Lock()
	c.mu.restores[r.record.Volume] = r
	c.mu.Unlock()
	if err := c.saveRestores(); err != nil {
		return err
	}
	if err := c.engine.RenameVolume(ctx, hidden, r.record.Volume); err != nil {
		return err
	}
	return r.marks.Flush(ctx)
}

// pull takes what comes.
func (c *Control) pull(ctx context.Context, r *restoring, conn RestoreConn, resumed bool) (err error) {
	volume, err := c.Volume(r.record.Volume)
	if err != nil {
		return err
	}
	device, err := c.engine.OpenDevice(volume.Name, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	reached := r.live.State().ReachedBytes
	c.log.Info("a volume is being restored and can be used", "volume", volume.Name, "backup", r.record.Backup, "resumed", resumed, "reachedBytes", reached, "contentBytes", r.record.ContentBytes)
	if err := conn.Begin(RestoreBegun{Volume: volume, ReachedBytes: reached, Resumed: resumed}); err != nil {
		return err
	}
	stream, err := transfer.NewLiveReader(conn.Body)
	if err != nil {
		return err
	}
	return r.live.Pull(ctx, live.Pulling{Device: device, Stream: stream, Want: conn.Want, Keep: func(_ context.Context, reached uint64) error {
		c.mu.Lock()
		r.record.ReachedBytes = reached
		c.mu.Unlock()
		return c.saveRestores()
	}})
}

// completeRestore makes an ordinary volume of one whose content is all there, durably. First nobody believes in marks any more after a crash, and only then no more are made.
func (c *Control) completeRestore(ctx context.Context, r *restoring) error {
	release, err := c.names.hold(ctx, "restore", r.record.Volume)
	if err != nil {
		return err
	}
	defer release()
	ctx = context.WithoutCancel(ctx)
	if err := c.saveOver(r); err != nil {
		return err
	}
	if err := r.live.Complete(ctx); err != nil {
		return err
	}
	c.log.Info("a restore is complete", "volume", r.record.Volume, "backup", r.record.Backup, "contentBytes", r.record.ContentBytes)
	if err := c.forgetRestore(ctx, r); err != nil {
		c.log.Warn("the marks of a restore that is complete could not be deleted; the next start will", "volume", r.record.Volume, "error", err)
	}
	return nil
}

// forgetRestore takes a restore out of the table and deletes its marks.
func (c *Control) forgetRestore(ctx context.Context, r *restoring) error {
	c.mu.Lock()
	delete(c.mu.restores, r.record.Volume)
	marks := r.marks
	r.marks = nil
	c.mu.Unlock()
	var err error
	if marks != nil {
		err = marks.Close()
	}
	return errors.Join(err, c.discard(ctx, r.record.Marks))
}

// endSession lets another one pull.
func (c *Control) endSession(r *restoring) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(r.session.over)
	r.session = nil
}

// stopRestore ends whoever pulls the content of a volume that is to be deleted, whose name is held.
func (c *Control) stopRestore(ctx context.Context, volume string) (*restoring, error) {
	c.mu.Lock()
	r := c.mu.restores[volume]
	var session *restoreSession
	if r != nil {
		session = r.session
	}
	c.mu.Unlock()
	if session == nil {
		return r, nil
	}
	session.cancel()
	select {
	case <-session.over:
		return r, nil
	case <-ctx.Done():
		return r, ctx.Err()
	}
}

// dropRestore ends the restore of a volume that was just deleted.
func (c *Control) dropRestore(ctx context.Context, r *restoring) error {
	if r.live != nil {
		r.live.End()
	}
	var err error
	if r.marks != nil {
		err = r.marks.Flush(ctx) // the delete is durable before the restore is forgotten, or a power loss would leave a volume with holes that nobody knows of
	}
	return errors.Join(err, c.saveOver(r), c.forgetRestore(context.WithoutCancel(ctx), r))
}
