package journal

import (
	"context"
	"fmt"
	"hash/crc32"
)

// sealLoop seals full files in order. It ends when the log has failed, or closes and nothing is left.
func (l *Log) sealLoop() {
	defer l.sealer.Done()
	for {
		f := l.nextFull()
		if f == nil {
			return
		}
		if l.syncThrough(context.Background(), f.nextSeq()-1) != nil {
			return // the log has failed, and has told its owner
		}
		if err := l.seal(f); err != nil {
			return
		}
		l.sealedOne(f)
	}
}

// nextFull waits for a full file; it returns nil when the sealer is to end.
func (l *Log) nextFull() *logFile {
	st := &l.st
	st.Lock()
	defer st.Unlock()
	for len(st.full) == 0 {
		if st.stopping || l.failed() != nil {
			return nil
		}
		st.wake.Wait()
	}
	return st.full[0]
}

// seal makes the index and footer of a file durable whose records are durable already: a footer promises that all before it is on the
// device.
func (l *Log) seal(f *logFile) error {
	if err := sealFile(f, func(b [][]byte, off int64) error { return l.write(f, b, off) }, func() error { return l.sync(f) }); err != nil {
		return l.fail(err)
	}
	return nil
}

// sealFile writes index and footer of f and syncs them.
func sealFile(f *logFile, write func(bufs [][]byte, off int64) error, sync func() error) error {
	ft := f.footer(crc32.Update(f.seed, castagnoli, f.index))
	page := make([]byte, pageSize)
	f.sign(&ft, f.index, page)
	ft.encode(page, f.seed)
	pad := zeroPage[:roundUp(ft.IndexLen)-ft.IndexLen]
	if ft.IndexOff+ft.IndexLen+int64(len(pad)) > f.dataLimit() {
		pad = nil
	}
	err := write([][]byte{f.index, pad}, ft.IndexOff)
	if err == nil {
		err = write([][]byte{page}, f.dataLimit())
	}
	if err == nil {
		err = sync()
	}
	if err != nil {
		return fmt.Errorf("seal %s: %w", fileSource(f.header.ID), err)
	}
	return nil
}

// sign sets the tag of a footer of an encrypted file. page is scratch.
func (f *logFile) sign(ft *Footer, index, page []byte) {
	if f.vault != nil {
		ft.encode(page, f.seed)
		ft.Tag = f.vault.foot.MAC(page[:footerBound], index)
	}
}

// sealedOne takes the oldest full file off the sealer's queue.
func (l *Log) sealedOne(f *logFile) {
	st := &l.st
	st.Lock()
	defer st.Unlock()
	f.sealed = true
	st.full = append(st.full[:0], st.full[1:]...)
	if len(st.indexes) <= maxUnsealed {
		st.indexes = append(st.indexes, f.index)
	}
	f.index = nil
	l.releaseLocked()
	st.wake.Broadcast()
}
