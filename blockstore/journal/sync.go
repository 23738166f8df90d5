package journal

import (
	"context"
	"time"
)

// Sync makes every record durable whose Append had returned before Sync was called. Callers at the same time share syncs: each waits for
// one that began after its call. Appends go on meanwhile. A failed sync is final, since the kernel drops what it could not write: the log
// has failed then, for everyone.
//
// When ctx ends Sync returns its error; the sync itself goes on. The caller that runs the sync for the others does not look at ctx until it
// is done.
func (l *Log) Sync(ctx context.Context) error {
	if err := l.usable(); err != nil {
		return err
	}
	return l.syncThrough(ctx, l.lastSeq())
}

// SyncThrough is Sync for the record seq, which has been appended, and all before it: records of others that came later need not wait for another sync. 0 is no record.
func (l *Log) SyncThrough(ctx context.Context, seq uint64) error {
	if err := l.usable(); err != nil {
		return err
	}
	return l.syncThrough(ctx, seq)
}

// syncThrough waits until the record seq, which has been appended, is durable.
func (l *Log) syncThrough(ctx context.Context, seq uint64) error {
	g := &l.group
	g.Lock()
	defer g.Unlock()
	for {
		if err := l.failed(); err != nil {
			return err
		}
		if l.durable.Load() >= seq {
			return nil
		}
		if !g.running {
			g.running, g.done = true, nil
			g.Unlock()
			l.syncNow()
			g.Lock()
			g.running = false
			if g.done != nil {
				close(g.done)
			}
			continue
		}
		if g.done == nil {
			g.done = make(chan struct{})
		}
		done := g.done
		g.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
		}
		g.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// syncNow syncs every file that has unsynced bytes, oldest first, so that a durable file never follows one that is not. Only the leader of
// the group runs it.
func (l *Log) syncNow() {
	st := &l.st
	st.Lock()
	seq, pos, n := st.lastSeq, st.lastPos, st.unsyncedN
	files := append(l.group.scratch[:0], st.unsynced...)
	st.Unlock()
	l.group.scratch = files
	if err := l.syncFiles(files); err != nil {
		l.fail(err)
		return
	}
	l.syncs.Add(1)
	st.Lock()
	defer st.Unlock()
	st.durableSeq, st.durablePos = seq, pos
	l.durable.Store(seq)
	st.unsyncedN -= n
	// All but the last were full when the list was taken, so nothing can have been added to them.
	st.unsynced = st.unsynced[len(files)-1:]
	l.releaseLocked()
}

// syncLoop syncs at least every SyncEvery, and when the appender says that SyncBytes are unsynced.
func (l *Log) syncLoop() {
	defer l.loops.Done()
	var tick <-chan time.Time
	if l.opts.SyncEvery > 0 {
		t := time.NewTicker(l.opts.SyncEvery)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-l.quit:
			return
		case <-tick:
		case <-l.syncKick:
		}
		// A failure has been recorded and reported by fail; there is nobody else to tell.
		if l.syncThrough(context.Background(), l.lastSeq()) != nil {
			return
		}
	}
}
