package journal

import "slices"

// ReleaseBefore says that no record before pos is needed any more, by anyone who will open the log: the owner has made durable the position
// from which it will replay. Files that lie wholly before pos are recycled once they are sealed, a later file is known to be durable, and
// the pins that were taken before have ended; until then they count as retired, not as live. It does not wait.
func (l *Log) ReleaseBefore(pos Pos) error {
	if err := l.usable(); err != nil {
		return err
	}
	l.st.Lock()
	defer l.st.Unlock()
	l.st.releaseTo = max(l.st.releaseTo, pos)
	l.releaseLocked()
	return nil
}

// releaseLocked retires what may go. st is held.
func (l *Log) releaseLocked() {
	st := &l.st
	n := 0
	for n < len(st.live)-1 {
		f := st.live[n]
		if !f.sealed || f.header.ID >= st.releaseTo.File() || f.header.ID >= st.unsynced[0].header.ID {
			break
		}
		st.retired = append(st.retired, retired{file: f, epoch: l.pins.epoch.Load()})
		st.closedBytes -= f.header.Capacity
		l.streamLive.Add(-f.closedStream())
		n++
	}
	if n == 0 {
		return
	}
	st.live = slices.Delete(st.live, 0, n)
	l.kick(l.prepKick)
}

// reclaim turns retired files without readers into spares, or removes them. It reports whether some still have readers. Only prepareLoop
// calls it.
func (l *Log) reclaim() (left bool) {
	l.pins.tryAdvance()
	l.pins.tryAdvance()
	epoch := l.pins.epoch.Load()

	st := &l.st
	st.Lock()
	n := 0
	for n < len(st.retired) && st.retired[n].epoch+2 <= epoch {
		n++
	}
	free := slices.Clone(st.retired[:n])
	st.retired = slices.Delete(st.retired, 0, n)
	if n > 0 {
		l.publishFiles()
	}
	left = len(st.retired) > 0
	keep := max(0, min(n, maxSpares-len(st.spares)))
	for _, r := range free[:keep] {
		st.spares = append(st.spares, r.file)
	}
	st.Unlock()
	for _, r := range free[keep:] {
		// A file that cannot be removed costs space until the next Open tries again; the log is none the worse.
		_ = r.file.close()
		_ = l.opts.FS.Remove(r.file.path)
		for _, c := range r.file.copies() {
			_ = l.opts.FS.Remove(c.path)
		}
	}
	return left
}
