package live

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// rig is a volume that is being restored.
type rig struct {
	t             *testing.T
	ctx           context.Context // ends before the test hangs
	source        []byte
	volume, marks *memory
	restore       *Restore
	device        Device
	durable       uint64
	waited        atomic.Int32
}

func newRig(t *testing.T, source []byte) *rig {
	size := (uint64(len(source)) + 511) / 512 * 512
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	g := &rig{t: t, ctx: ctx, source: source, volume: newMemory(size), marks: newMemory(MarksSize(size))}
	g.open()
	return g
}

// open is what a start of the daemon does.
func (g *rig) open() {
	g.t.Helper()
	r, err := Open(g.t.Context(), Options{ContentBytes: uint64(len(g.source)), ReachedBytes: g.durable, Marks: g.marks, Waits: func() { g.waited.Add(1) }})
	if err != nil {
		g.t.Fatal(err)
	}
	g.restore, g.device = r, r.Wrap(g.volume)
}

// source is who pulls, at the test's command.
type source struct {
	g     *rig
	wants chan block.Range
	out   *transfer.LiveWriter
	pipe  *io.PipeWriter
	ended chan error
}

// pull begins a session.
func (g *rig) pull() *source {
	g.t.Helper()
	body, pipe := io.Pipe()
	s := &source{g: g, wants: make(chan block.Range, 1000), pipe: pipe, ended: make(chan error, 1)}
	go func() {
		stream, err := transfer.NewLiveReader(body)
		if err == nil {
			err = g.restore.Pull(g.t.Context(), Pulling{
				Device: g.volume, Stream: stream,
				Want: func(r block.Range) error { s.wants <- r; return nil },
				Keep: func(_ context.Context, reached uint64) error { g.durable = reached; return nil },
			})
		}
		_ = body.CloseWithError(errors.New("the pull has ended"))
		s.ended <- err
	}()
	var err error
	if s.out, err = transfer.NewLiveWriter(pipe, uint64(len(g.source))); err != nil {
		g.t.Fatal(err)
	}
	return s
}

func (s *source) send(r block.Range) error {
	if p := s.g.source[r.Off:r.End()]; len(bytes.Trim(p, "\x00")) == 0 {
		return s.out.Zero(r.Off, r.Len)
	}
	return s.out.Data(r.Off, s.g.source[r.Off:r.End()])
}

// cut ends a session as the death of who pulls does.
func (s *source) cut() {
	s.g.t.Helper()
	_ = s.pipe.Close()
	if err := <-s.ended; !errors.Is(err, transfer.ErrCut) {
		s.g.t.Errorf("a stream that is cut ends with %v", err)
	}
}

func (g *rig) read(off, n uint64) []byte {
	g.t.Helper()
	p := make([]byte, n)
	if _, err := g.device.ReadAt(g.ctx, p, off, nil); err != nil {
		g.t.Fatal(err)
	}
	return p
}

// noise is n bytes of which about half of all blocks are zeroes.
func noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for at := 0; at < n; {
		run := min(n-at, (1+rng.IntN(40))*2048)
		if rng.IntN(2) == 0 {
			for i := range run {
				p[at+i] = byte(rng.Uint32())
			}
		}
		at += run
	}
	return p
}

// A read waits for what has not come, which is asked for, and everything else goes on meanwhile, with nobody to bring anything too.
func TestReadsWait(t *testing.T) {
	data := bytes.Repeat([]byte{5}, 1<<20)
	g := newRig(t, data)
	if _, err := g.device.TryReadAt(make([]byte, 512), 4096, nil); !errors.Is(err, nbd.ErrLongWait) {
		t.Errorf("a read that must not wait: %v", err)
	}
	got := make(chan []byte)
	go func() { got <- g.read(300_000, 1000) }()
	for g.restore.State().Waiting == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := g.device.TryWrite([]nbd.Write{{Off: 303_104, Data: bytes.Repeat([]byte{7}, 4096)}}, false); err != nil {
		t.Fatal(err)
	}
	if p := g.read(303_104, 4096); p[0] != 7 {
		t.Errorf("what was written reads as %d", p[0])
	}
	if err := g.device.TryWrite([]nbd.Write{{Off: 8192, Data: make([]byte, 512)}}, false); !errors.Is(err, nbd.ErrLongWait) {
		t.Errorf("a write of a part of a block that has not come: %v", err)
	}
	s := g.pull()
	if r := <-s.wants; r.Off != 262144 || r.Len != Step {
		t.Errorf("%+v is wanted", r)
	} else if err := s.send(r); err != nil {
		t.Fatal(err)
	}
	if p := <-got; !bytes.Equal(p, data[300_000:301_000]) {
		t.Error("a read that waited has other bytes")
	}
	if p := g.read(303_104, 4096); p[0] != 7 {
		t.Error("what was pulled took the place of what was written")
	}
	if err := s.out.Failed(0, Step, "frame 4 is damaged"); err != nil {
		t.Fatal(err)
	}
	go func() { <-s.wants; _ = s.out.Failed(0, Step, "frame 4 is damaged") }()
	if _, err := g.device.ReadAt(t.Context(), make([]byte, 1), 0, nil); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a read of what cannot be had: %v", err)
	}
	if _, err := g.restore.enter(); !errors.Is(err, block.ErrInUse) {
		t.Errorf("a second one that pulls: %v", err)
	}
	s.cut()
	if g.waited.Load() == 0 {
		t.Error("nobody was told that a read waits although nobody pulls")
	}
	g.restore.End()
	if _, err := g.device.ReadAt(t.Context(), make([]byte, 1), 0, nil); !errors.Is(err, ErrEnded) {
		t.Errorf("a read after the end: %v", err)
	}
}

// Zeroes of a guest stay zeroes: written, trimmed or zeroed, whole blocks or parts of them, and after a restart.
func TestZeroesStay(t *testing.T) {
	data := bytes.Repeat([]byte{5}, 1<<20)
	g := newRig(t, data)
	s := g.pull()
	want := bytes.Clone(data)
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	step(g.device.Write(ctx, []nbd.Write{{Off: 8192, Data: make([]byte, 8192)}}, false))
	clear(want[8192:16384])
	step(g.device.Trim(ctx, block.Range{Off: 20_000, Len: 10_000}, false))
	clear(want[20480:28672])
	answered := make(chan error, 1)
	go func() { answered <- s.send(<-s.wants) }()
	step(g.device.Zero(ctx, block.Range{Off: 300_000, Len: 10_000}, false, false))
	step(<-answered)
	clear(want[300_000:310_000])
	// A block that has come, and whose last bytes are zeroed in parts.
	step(g.device.Write(ctx, []nbd.Write{{Off: 532_480, Data: bytes.Repeat([]byte{1}, 4096)}}, false))
	step(g.device.Write(ctx, []nbd.Write{{Off: 532_480, Data: make([]byte, 2048)}, {Off: 534_528, Data: make([]byte, 2048)}}, true))
	clear(want[532_480:536_576])
	s.cut()
	g.open() // the daemon dies
	for _, off := range []uint64{8192, 20480, 303_104, 532_480} {
		if p := g.read(off, 4096); !bytes.Equal(p, want[off:off+4096]) {
			t.Errorf("at %d there are other bytes after a restart", off)
		}
	}
	s = g.pull()
	for off := uint64(0); off < 1<<20; off += Step {
		step(s.send(block.Range{Off: off, Len: Step}))
	}
	step(s.out.Reached(1 << 20))
	step(<-s.ended)
	step(g.restore.Complete(ctx))
	if p := g.read(0, 1<<20); !bytes.Equal(p, want) {
		t.Errorf("after the restore there are other bytes")
	}
}

// What has not come is told as data, whatever the engine calls it.
func TestStatus(t *testing.T) {
	g := newRig(t, make([]byte, 1<<20))
	if err := g.device.Trim(t.Context(), block.Range{Off: 8192, Len: 4096}, false); err != nil {
		t.Fatal(err)
	}
	type run struct{ n, depth uint64 }
	var got []run
	err := g.device.Depths(t.Context(), block.Range{Off: 512, Len: 1<<20 - 512}, func(n uint64, depth uint32) bool {
		if k := len(got); k > 0 && got[k-1].depth == uint64(depth) {
			got[k-1].n += n
		} else {
			got = append(got, run{n, uint64(depth)})
		}
		return true
	})
	want := []run{{7680, 1}, {4096, 0}, {1<<20 - 12288, 1}}
	if err != nil || len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// Guests that do anything at all, beside a source that comes, goes, answers and pushes, and a daemon that dies now and then, see what a plain slice shows, and so does the end.
func TestModel(t *testing.T) {
	for seed := range uint64(8) {
		model(t, seed)
	}
}

func model(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	content := 3<<20 + rng.IntN(9000)
	g := newRig(t, noise(seed, content))
	size := g.volume.size
	want := make([]byte, size)
	copy(want, g.source)
	for life := range 4 {
		s := g.pull()
		var serve sync.WaitGroup
		stop := make(chan struct{})
		push := rand.New(rand.NewPCG(seed, 100+uint64(life)))
		serve.Go(func() {
			for off := g.restore.State().ReachedBytes; ; {
				select {
				case r := <-s.wants:
					_ = s.send(r)
					continue
				case <-stop:
					return
				default:
				}
				if life < 3 && off > uint64(life+1)*uint64(content)/4 {
					time.Sleep(50 * time.Microsecond)
					continue
				}
				n := min(uint64(1+push.IntN(60))*4096, uint64(content)-off)
				if n == 0 {
					return
				}
				if _, err := s.out, s.out.Data(off, g.source[off:off+n]); err != nil {
					return
				}
				if off += n; s.out.Reached(off) != nil {
					return
				}
			}
		})
		for range 300 {
			guest(g, rng, want)
		}
		if life < 3 {
			close(stop)
			serve.Wait()
			s.cut()
			g.open()
			continue
		}
		if err := <-s.ended; err != nil {
			t.Fatal(err)
		}
		serve.Wait()
	}
	if err := g.restore.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		guest(g, rng, want)
	}
	if got := g.read(0, size); !bytes.Equal(got, want) {
		t.Fatalf("seed %d: other bytes in the end", seed)
	}
}

// guest does one thing and checks it.
func guest(g *rig, rng *rand.Rand, want []byte) {
	t := g.t
	unit := []uint64{1, 512, 4096, 4096, 65536}[rng.IntN(5)]
	off := rng.Uint64N(uint64(len(want))) / unit * unit
	n := min(uint64(1+rng.IntN(8))*unit, uint64(len(want))-off)
	r := block.Range{Off: off, Len: n}
	var err error
	switch rng.IntN(6) {
	case 0, 1:
		holes, e := []block.Range(nil), error(nil)
		p := bytes.Repeat([]byte{99}, int(n))
		if holes, err = g.device.TryReadAt(p, off, nil); errors.Is(err, block.ErrWouldBlock) {
			holes, e = g.device.ReadAt(g.ctx, p, off, nil)
			err = e
		}
		if err == nil && !bytes.Equal(p, want[off:off+n]) {
			t.Fatalf("a read of %d at %d has other bytes", n, off)
		}
		for _, h := range holes {
			if len(bytes.Trim(want[h.Off:h.End()], "\x00")) > 0 {
				t.Fatalf("%+v is no hole", h)
			}
		}
	case 2:
		clear(want[off : off+n])
		err = g.device.Zero(g.ctx, r, false, false)
	case 3:
		whole := inward(r, uint64(len(want)))
		clear(want[whole.Off:whole.End()])
		err = g.device.Trim(g.ctx, r, false)
	default:
		data := make([]byte, n)
		if rng.IntN(3) > 0 {
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
		}
		copy(want[off:], data)
		batch := []nbd.Write{{Off: off, Data: data}}
		if err = g.device.TryWrite(batch, false); errors.Is(err, block.ErrWouldBlock) {
			err = g.device.Write(g.ctx, batch, rng.IntN(2) == 0)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Guests that write, zero and read blocks of their own, each many times while the frame that these lie in comes, lose nothing.
func TestGuestsBesideThePull(t *testing.T) {
	const blocks, guests = 64, 4
	for round := range uint64(150) {
		data := bytes.Repeat([]byte{200}, blocks*block.Size)
		g := newRig(t, data)
		s := g.pull()
		var all sync.WaitGroup
		for id := range guests {
			all.Go(func() {
				rng := rand.New(rand.NewPCG(round, uint64(id)))
				last := bytes.Repeat([]byte{200}, blocks)
				for range 40 {
					n := rng.IntN(blocks/guests)*guests + id
					r := block.Range{Off: uint64(n) * block.Size, Len: block.Size}
					var err error
					switch rng.IntN(4) {
					case 0:
						last[n] = 0
						err = g.device.Trim(g.ctx, r, false)
					case 1:
						last[n] = byte(1 + rng.IntN(100))
						err = g.device.Write(g.ctx, []nbd.Write{{Off: r.Off, Data: bytes.Repeat(last[n:n+1], block.Size)}}, false)
					default:
						p := make([]byte, block.Size)
						if _, err = g.device.ReadAt(g.ctx, p, r.Off, nil); err == nil && !bytes.Equal(p, bytes.Repeat(last[n:n+1], block.Size)) {
							t.Errorf("round %d: block %d reads as %d, want %d", round, n, p[0], last[n])
						}
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Go(func() {
			for off := uint64(0); off < uint64(len(data)); off += 8 * block.Size {
				_ = s.out.Data(off, data[off:off+8*block.Size])
				_ = s.out.Reached(off + 8*block.Size)
			}
		})
		all.Wait()
		if err := <-s.ended; err != nil || t.Failed() {
			t.Fatal(err)
		}
	}
}
