package journal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/membership"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// Log is an open log. Its methods may be called from any number of goroutines.
type Log struct {
	opts Options
	pins pinSet
	// files holds every file that a reader may ask for, by id. It is replaced, never changed, under st.
	files atomic.Pointer[[]*logFile]

	app appender

	gathering gathering

	st state

	// group is the group commit: at most one sync runs, the others wait for its end.
	group struct {
		sync.Mutex
		running bool
		done    chan struct{} // closed when the running sync ends; nil while nobody waits for that
		scratch []*logFile
	}

	pace syncPace

	streamLive atomic.Int64 // bytes of records with FlagStream in live files
	tight      atomic.Bool  // no files are kept for the next stream

	syncs    atomic.Uint64 // group commits
	durable  atomic.Uint64 // copy of st.durableSeq for the appender
	closed   atomic.Bool
	dirs     *membership.Group // of the directories; nil where there is one, and never were more
	places   atomic.Pointer[[]*place]
	member   sync.Mutex // orders changes of places
	fillers  sync.WaitGroup
	mended   atomic.Uint64
	failure  atomic.Pointer[error]
	syncKick chan struct{} // capacity 1: enough is unsynced
	prepKick chan struct{} // capacity 1: a file is wanted, or one was retired
	quit     chan struct{}
	loops    sync.WaitGroup // syncLoop, prepareLoop and gatherLoop
	sealer   sync.WaitGroup // sealLoop
}

// state is what the goroutines of a log share. It is held for a few instructions at a time, never over I/O.
type state struct {
	sync.Mutex
	wake sync.Cond // a file was prepared or sealed, or the log failed or closes

	lastSeq    uint64
	lastPos    Pos
	nextPos    Pos
	durableSeq uint64
	durablePos Pos
	appended   int64 // bytes since Open
	unsyncedN  int64 // bytes

	// live holds the files that are not released, oldest first; the last one is active.
	live []*logFile
	// full holds those that wait for their seal.
	full []*logFile
	// unsynced holds the files that may have unsynced bytes, oldest first; the last one is active. A file that is listed is never retired:
	// so its descriptor stays open for the sync, and a file goes only when a later one is known to be durable.
	unsynced    []*logFile
	closedBytes int64 // capacity of the live files but the active one

	releaseTo Pos
	retired   []retired
	spares    []*logFile

	next     *logFile // prepared, not yet in use
	prepErr  error    // why there is none
	nextID   uint32
	indexes  [][]byte // buffers for the index of the next files
	stopping bool     // the sealer ends when nothing is left to do
}

// retired is a released file that a reader may still be in.
type retired struct {
	file  *logFile
	epoch uint64 // of the pins when it was retired
}

// Open recovers the log in opts.Dir: it calls replay for every valid record at or after replayFrom, in order, then starts a new file under
// opts.BootEpoch. What replay saw is durable when Open returns. Files before the one that holds replayFrom are spares now; what lies
// after the end of the log is removed.
//
// replayFrom is the position from which the owner needs records; zero is the beginning of the log, and an error unless that still exists.
// The end of the log is its first bad record. An error that wraps block.ErrCorrupt says that records that were durable are damaged or
// missing (see Options.AcceptLoss). An error of replay is returned as it is.
func Open(opts Options, replayFrom Pos, replay func(*Replayed) error) (*Log, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Log{opts: opts, pace: syncPace{window: opts.FileSize / 4}, syncKick: make(chan struct{}, 1), prepKick: make(chan struct{}, 1), quit: make(chan struct{})}
	l.st.wake.L = &l.st
	l.gathering.kick = make(chan struct{}, 1)
	if err := opts.FS.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create log directory: %w", err)
	}
	if err := vfs.SyncDir(opts.FS, opts.FS.PathDir(opts.Dir)); err != nil {
		return nil, fmt.Errorf("create log directory: %w", err)
	}
	group, places, err := opts.openPlaces()
	if err != nil {
		return nil, err
	}
	l.dirs = group
	l.places.Store(&places)
	r := &recovery{opts: opts, from: replayFrom, replay: replay, places: places}
	if err := r.run(); err != nil {
		r.closeAll()
		return nil, err
	}
	if err := l.beginPlaces(r); err != nil {
		r.closeAll()
		return nil, err
	}
	err = l.begin(r)
	if err == nil {
		err = r.discard()
	}
	if err != nil {
		r.closeSurplus()
		return nil, errors.Join(err, l.closeFiles())
	}
	if opts.Events.Recovered != nil {
		opts.Events.Recovered(r.sum)
	}
	l.loops.Add(3)
	go l.gatherLoop()
	l.sealer.Add(1)
	go l.syncLoop()
	go l.prepareLoop()
	go l.sealLoop()
	l.fillAll()
	return l, nil
}

// begin takes over what recovery found and starts the new active file, durably.
func (l *Log) begin(r *recovery) error {
	st := &l.st
	st.live, st.spares, st.nextID = r.live, r.spares, r.nextID
	for _, f := range st.live {
		st.closedBytes += f.header.Capacity
		l.streamLive.Add(f.closedStream())
		f.streamed.Store(f.stream > 0)
	}
	first := max(r.nextSeq, l.opts.MinSeq, 1)
	st.lastSeq, st.durableSeq = first-1, first-1
	l.durable.Store(st.durableSeq)
	st.lastPos, st.durablePos = r.lastPos, r.lastPos

	l.app.lastTime = r.lastTime
	f, err := l.prepare()
	if err != nil {
		return fmt.Errorf("start log: %w", err)
	}
	st.live = append(st.live, f)
	l.app.active = f
	if err = l.writeHeader(f, r.prevID, r.prevChain, first); err == nil {
		err = l.syncFiles([]*logFile{f})
	}
	if err != nil {
		return fmt.Errorf("start log: %w", err)
	}
	st.unsynced = append(st.unsynced, f)
	st.nextPos = makePos(f.header.ID, f.end)
	l.publishFiles()
	l.kick(l.prepKick)
	return nil
}

// publishFiles shows readers the files that they may ask for: retired ones too, until they are reclaimed. st is held or not yet shared.
func (l *Log) publishFiles() {
	files := make([]*logFile, 0, len(l.st.retired)+len(l.st.live))
	for _, r := range l.st.retired {
		files = append(files, r.file)
	}
	files = append(files, l.st.live...)
	l.files.Store(&files)
}

// Close syncs and seals the log and closes its files. Appends, syncs and reads must have ended or fail. It returns the error of the sync,
// or the one by which the log had failed.
func (l *Log) Close() error {
	l.app.Lock()
	if l.closed.Swap(true) {
		l.app.Unlock()
		return nil
	}
	l.app.Unlock()
	close(l.quit)
	l.st.Lock()
	l.st.wake.Broadcast()
	l.st.Unlock()
	l.loops.Wait()
	l.fillers.Wait()

	err := l.syncThrough(context.Background(), l.lastSeq())
	l.st.Lock()
	l.st.stopping = true
	l.st.wake.Broadcast()
	l.st.Unlock()
	l.sealer.Wait()
	if err == nil {
		err = l.seal(l.app.active)
	}
	if w := l.app.bypass.writer; w != nil {
		w.Close()
	}
	return errors.Join(err, l.closeFiles())
}

// pinsEnd is how long Close waits for readers. Files that one still has after that stay open: they are mapped, and a mapping must not go under a reader.
const pinsEnd = 10 * time.Second

// closeFiles closes every descriptor, once nobody reads any more. Whoever comes now finds no file.
func (l *Log) closeFiles() (err error) {
	l.files.Store(&[]*logFile{})
	for n, began := 0, time.Now(); n < 2; { // a pin of this epoch keeps the one after the next from beginning
		if l.pins.tryAdvance() {
			n++
		} else if time.Since(began) > pinsEnd {
			return errors.New("close the log: somebody still reads it")
		} else {
			time.Sleep(time.Millisecond)
		}
	}
	st := &l.st
	st.Lock()
	defer st.Unlock()
	all := append(append([]*logFile{}, st.live...), st.spares...)
	for _, r := range st.retired {
		all = append(all, r.file)
	}
	if st.next != nil {
		all = append(all, st.next)
	}
	for _, f := range all {
		err = errors.Join(err, f.close())
	}
	return err
}

// fail stops the log for good: appends and syncs return ErrFailed from now on. It returns that error.
func (l *Log) fail(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	if l.failure.CompareAndSwap(nil, &err) && l.opts.Events.Failed != nil {
		l.opts.Events.Failed(err)
	}
	l.st.Lock()
	l.st.wake.Broadcast()
	l.st.Unlock()
	return *l.failure.Load()
}

// failed returns the error by which the log has failed, or nil.
func (l *Log) failed() error {
	if p := l.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// usable returns why appends and syncs are refused, or nil.
func (l *Log) usable() error {
	if err := l.failed(); err != nil {
		return err
	}
	if l.closed.Load() {
		return fmt.Errorf("log: %w", block.ErrClosed)
	}
	return nil
}

// kick wakes the goroutine that listens on c, which looks at everything there is to do.
func (l *Log) kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
