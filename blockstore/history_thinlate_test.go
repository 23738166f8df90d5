package blockstore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

// put writes a block, and lets a second go by.
func (d *day) put(v *dayVolume, flush bool) {
	d.t.Helper()
	dev, err := d.s.OpenDevice(v.name, "")
	d.must(err)
	defer dev.Close()
	off := d.rng.IntN(len(v.data)/block.Size) * block.Size
	data := guestData(d.rng, block.Size)
	d.must(dev.Write(context.Background(), []block.Write{{Off: uint64(off), Data: data}}, false))
	copy(v.data[off:], data)
	seq := d.note(v)
	v.changes = append(v.changes, barrier{seq, d.clock.Load()})
	d.clock.Add(int64(time.Second))
	if flush {
		d.must(dev.Flush(context.Background()))
		v.flushes = append(v.flushes, barrier{seq, d.clock.Load()})
	}
}

// every attaches the moment of each change and flush, and compares it.
func (d *day) every(v *dayVolume, what string) {
	d.t.Helper()
	for _, c := range append(append([]barrier(nil), v.changes...), v.flushes...) {
		for _, m := range []Moment{{Seq: c.seq}, {At: time.Unix(0, c.at)}} {
			p, err := d.s.OpenPoint(context.Background(), v.name, m)
			if errors.Is(err, block.ErrNotFound) {
				continue
			}
			d.must(err)
			seq, _, _ := p.Moment()
			d.same(p, v, seq, fmt.Sprintf("%s: the moment of record %d", what, c.seq))
			d.must(p.Close())
		}
	}
}

// A volume becomes idle while a part of what it wrote since its last flush is in the log only: what was copied is thinned with it, not as if that were all.
func TestHistoryThinLate(t *testing.T) {
	for _, ended := range []string{"open", "rolled", "closed"} { // how the file ends that has the first part
		t.Run(ended, func(t *testing.T) {
			d := newDay(t, 11, testOptions(t, vfs.Default, t.TempDir())) // a file of the log is filled by nobody
			d.add("a", 256<<10)
			v := d.vols[0]
			for range 20 {
				d.put(v, true)
			}
			for range 4 {
				d.put(v, false)
			}
			d.attach(v, d.clock.Load()) // copies what there is
			switch ended {
			case "rolled":
				d.must(d.s.historian.all()[0].stream.Roll())
			case "closed":
				d.must(d.s.Close())
				d.s = openTest(t, d.opts)
			}
			for range 10 {
				d.put(v, false)
			}
			last := d.note(v)
			d.clock.Add(int64(16 * time.Minute))
			d.must(d.s.historian.step(context.Background())) // makes a root
			for _, idle := range []time.Duration{dayPolicy.Every + time.Minute, dayPolicy.Flushes, dayPolicy.Minutes} {
				d.clock.Add(int64(idle))
				d.turn()
				d.every(v, fmt.Sprint("idle for ", idle))
			}
			info, err := d.s.History("a")
			d.must(err)
			if d.s.thinner.files.Load() == 0 || info.WholeSeq < last {
				t.Errorf("%d files were thinned, history is whole from %d on, want %d", d.s.thinner.files.Load(), info.WholeSeq, last)
			}
			dev, err := d.s.OpenDevice("a", "") // a flush long after the last write names no moment of what is thinned
			d.must(err)
			d.must(errors.Join(dev.Flush(context.Background()), dev.Close()))
			d.put(v, false) // it is copied with the next write
			d.every(v, "after a late flush")
			points, err := d.s.HistoryPoints(context.Background(), "a", PointQuery{Limit: MaxPoints})
			d.must(err)
			for _, point := range points {
				p, err := d.s.OpenPoint(context.Background(), "a", Moment{Seq: point.Seq})
				d.must(err)
				if seq, _, _ := p.Moment(); seq != point.Seq || p.Thinned() {
					t.Errorf("the %s of record %d of %s is listed, and is record %d", point.Kind, point.Seq, point.At, seq)
				}
				d.must(p.Close())
			}
		})
	}
}

// A pass of the thinner ends before HoldHistory returns, and stops when the policy keeps more or the disk is nearly full.
func TestHistoryThinStops(t *testing.T) {
	ctx := context.Background()
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.LogFileBytes = 256 << 10
	d := newDay(t, 12, opts)
	d.add("a", 256<<10)
	v := d.vols[0]
	for range 300 {
		d.guest(v)
		d.clock.Add(d.rng.Int64N(int64(time.Minute)))
		d.must(d.s.historian.step(ctx))
	}
	d.clock.Add(int64(dayPolicy.Every + time.Minute))
	th := d.s.thinner
	d.s.historian.work.Lock() // it would give up history
	th.busy.Lock()
	d.s.space.state.Store(int32(SpaceCritical))
	d.s.historian.held.Store(false)
	th.busy.Unlock()
	if more, err := th.pass(ctx); more || err != nil || th.files.Load() > 0 {
		t.Fatalf("thinned while the disk is nearly full: %v, %v", more, err)
	}
	th.busy.Lock() // until the hook is there nobody passes
	d.must(d.s.space.checkDisk())
	d.s.historian.work.Unlock()
	wide, hit := dayPolicy, 0
	wide.Every, wide.Flushes, wide.Minutes = wide.Window, 0, 0
	th.step = func(step history.ThinStep) {
		if step == history.BeforeRename && hit == 0 {
			hit++
			d.must(d.s.SetHistory(ctx, "a", wide))
		}
	}
	files := th.files.Load()
	th.busy.Unlock()
	for range 10 {
		_, err := th.pass(ctx)
		d.must(err)
	}
	if hit != 1 || th.files.Load() != files {
		t.Fatalf("%d files were thinned by a policy that was replaced meanwhile, %d hits", th.files.Load()-files, hit)
	}
	th.busy.Lock()
	held, returned := make(chan struct{}), false
	th.step = func(step history.ThinStep) {
		if step == history.BeforeWrite && hit == 1 {
			hit++
			go func() {
				d.s.HoldHistory(true)
				close(held)
			}()
			for !d.s.historian.held.Load() {
				time.Sleep(time.Millisecond)
			}
			select {
			case <-held:
				returned = true
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	th.busy.Unlock()
	d.must(d.s.SetHistory(ctx, "a", dayPolicy))
	_, err := th.pass(ctx)
	d.must(err)
	<-held
	th.busy.Lock()
	defer th.busy.Unlock()
	if hit != 2 || returned || th.files.Load() != files {
		t.Errorf("%d files were thinned after history was held, %d hits, held during a pass %v", th.files.Load()-files, hit, returned)
	}
}
