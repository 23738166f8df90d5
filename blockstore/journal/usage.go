package journal

// Usage is how full a log is.
type Usage struct {
	Live     int64  // bytes that are not released: whole files, and the active one up to its end
	Stream   int64  // bytes of streams among them
	Charged  int64  // what of Live counts against Cap: all but streams that have room of their own
	Cap      int64  // Options.CapBytes
	Reserve  int64  // Options.ReserveBytes
	Unsynced int64  // bytes appended and not yet durable
	Appended int64  // bytes appended since Open, headers and descriptors included, padding not
	Syncs    uint64 // group commits since Open
	Oldest   Pos    // the beginning of the oldest live file
	Files    int    // live files
	Unsealed int    // of them, full files that wait for their seal
	Retired  int    // released files that a pin still holds
	Spare    int    // recycled files kept for reuse, and the one prepared
}

// Usage returns how full the log is.
func (l *Log) Usage() Usage {
	l.st.Lock()
	defer l.st.Unlock()
	st := &l.st
	u := Usage{
		Live: st.closedBytes + st.nextPos.Offset(), Cap: l.opts.CapBytes, Reserve: l.opts.ReserveBytes,
		Unsynced: st.unsyncedN, Appended: st.appended, Oldest: makePos(st.live[0].header.ID, 0),
		Files: len(st.live), Unsealed: len(st.full), Retired: len(st.retired), Spare: len(st.spares),
	}
	u.Stream = l.streamLive.Load()
	u.Charged = l.charged(u.Live, u.Stream)
	u.Syncs = l.syncs.Load()
	if st.next != nil {
		u.Spare++
	}
	return u
}

// Last returns the sequence number and position of the last record; of an empty log, the number before its first record and zero.
func (l *Log) Last() (seq uint64, pos Pos) {
	l.st.Lock()
	defer l.st.Unlock()
	return l.st.lastSeq, l.st.lastPos
}

// lastSeq returns the sequence number of the last record.
func (l *Log) lastSeq() uint64 {
	seq, _ := l.Last()
	return seq
}

// Durable returns the sequence number and position of the last record known to be synced.
func (l *Log) Durable() (seq uint64, pos Pos) {
	l.st.Lock()
	defer l.st.Unlock()
	return l.st.durableSeq, l.st.durablePos
}

// NextPos returns an upper bound of all positions so far: every later record has a higher one.
func (l *Log) NextPos() Pos {
	l.st.Lock()
	defer l.st.Unlock()
	return l.st.nextPos
}
