package journal

import (
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// canRoll reports whether roll would not wait.
func (l *Log) canRoll() bool {
	l.st.Lock()
	defer l.st.Unlock()
	return l.st.next != nil && len(l.st.full) < maxUnsealed
}

// roll makes the prepared file active and leaves the full one to the sealer. It waits for a file to be prepared, which has normally
// happened long ago, and for the sealer when maxUnsealed files are behind. The header is written but not synced: the next Sync covers both
// files, oldest first.
func (l *Log) roll() error {
	next, err := l.takeNext()
	if err != nil {
		return err
	}
	old := l.app.active
	if err := l.writeHeader(next, old.header.ID, old.chain, old.nextSeq()); err != nil {
		l.st.Lock()
		l.st.next = next
		l.st.Unlock()
		return err
	}
	st := &l.st
	st.Lock()
	if n := len(st.indexes); n > 0 {
		next.index, st.indexes = st.indexes[n-1][:0], st.indexes[:n-1]
	}
	st.full = append(st.full, old)
	st.live = append(st.live, next)
	st.unsynced = append(st.unsynced, next)
	st.closedBytes += old.header.Capacity
	l.streamLive.Add(old.closedStream() - old.stream)
	st.nextPos = makePos(next.header.ID, next.end)
	l.publishFiles()
	st.wake.Broadcast()
	st.Unlock()
	l.app.active = next
	l.kick(l.prepKick)
	return nil
}

// takeNext takes the prepared file, and waits for it if need be: for a batch that fills several files.
func (l *Log) takeNext() (*logFile, error) {
	st := &l.st
	st.Lock()
	defer st.Unlock()
	if err := l.awaitNextLocked(); err != nil {
		return nil, err
	}
	next := st.next
	st.next = nil
	return next, nil
}

// awaitNext returns when roll would not wait, which another appender may have changed by the time its caller looks.
func (l *Log) awaitNext() error {
	l.st.Lock()
	defer l.st.Unlock()
	return l.awaitNextLocked()
}

// awaitNextLocked waits for a prepared file. A failure to prepare one is reported once, and then tried again.
func (l *Log) awaitNextLocked() error {
	st := &l.st
	for {
		if err := l.failed(); err != nil {
			return err
		}
		if l.closed.Load() { // nobody prepares a file any more
			return fmt.Errorf("log: %w", block.ErrClosed)
		}
		if err := st.prepErr; err != nil {
			st.prepErr = nil
			l.kick(l.prepKick)
			return err
		}
		if st.next != nil && len(st.full) < maxUnsealed {
			return nil
		}
		st.wake.Wait()
	}
}

// writeHeader gives a prepared file its place in the log and writes its header, without a sync.
func (l *Log) writeHeader(f *logFile, prevID, prevChain uint32, firstSeq uint64) error {
	h := &f.header
	h.PrevID, h.PrevChain, h.FirstSeq = prevID, prevChain, firstSeq
	h.Created = max(l.opts.Now().UnixNano(), l.app.lastTime)
	h.Durable = l.durable.Load()
	f.seed = h.encode(l.app.page[:])
	var err error
	if f.vault, err = openVault(l.opts.Keys, h, l.app.page[:]); err != nil {
		return l.fail(fmt.Errorf("keys of %s: %w", fileSource(h.ID), err))
	}
	f.start()
	if err := l.write(f, [][]byte{l.app.page[:]}, 0); err != nil {
		err = fmt.Errorf("write header of %s: %w", fileSource(h.ID), err)
		if errors.Is(err, block.ErrNoSpace) {
			return err
		}
		return l.fail(err)
	}
	return nil
}
