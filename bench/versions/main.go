// Versions measures what history takes as it is thinned, of files that change while it looks (docs/rfc/0031-versions-side-by-side.md): those of a database under load, for one.
//
//	record  every so often compares all files below a directory with what they were, 4 KiB at a time, and appends what changed to a history, with a flush behind it
//	thin    thins a history, and says what it takes before and after, how long that took, and how long reads take
//
// With --as 1h a look stands for an hour, with a root and a file of its own, so that a few minutes make days.
//
// It is no store: a history lies in a directory of its own, as volume 1, and thin changes it, so work on a copy.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

const usage = `usage: versions record [--every 1s] [--for 3m] FILES HISTORY
       versions thin [--as 1h] flushes|minutes|hours HISTORY

example: go run ./bench/versions record --every 2s --for 5m /var/lib/postgresql/data /tmp/h
         cp -r /tmp/h /tmp/h2 && go run ./bench/versions thin flushes /tmp/h2`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "versions:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("nothing to do\n%s", usage)
	}
	flags := flag.NewFlagSet("versions", flag.ContinueOnError)
	every := flags.Duration("every", time.Second, "how often files are compared")
	long := flags.Duration("for", 3*time.Minute, "how long")
	as := flags.Duration("as", 0, "for how much time a look stands")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch {
	case args[0] == "record" && flags.NArg() == 2:
		return record(flags.Arg(0), flags.Arg(1), *every, *long, *as)
	case args[0] == "thin" && flags.NArg() == 2:
		return thin(flags.Arg(0), flags.Arg(1), *as > 0)
	}
	return fmt.Errorf("what is meant by %q?\n%s", args, usage)
}

const volume = 1

func open(dir string) (*history.Set, error) {
	s, bad, err := history.Open(history.Options{FS: vfs.Default, Dir: dir, StoreID: block.UUID{1}})
	if err == nil && bad[volume] != nil {
		err = bad[volume]
	}
	return s, err
}

// recorder knows what files were.
type recorder struct {
	st    *history.Stream
	files map[uint64][]byte // by inode: a file that gets another name stays where it is
	bases map[uint64]uint64 // where a file lies in the volume
	seq   uint64
	bytes int
	ahead time.Duration // of the clock
}

func (r *recorder) now() int64 { return time.Now().Add(r.ahead).UnixNano() }

func record(files, dir string, every, long, as time.Duration) error {
	s, err := open(dir)
	if err != nil {
		return err
	}
	r := &recorder{files: map[uint64][]byte{}, bases: map[uint64]uint64{}, seq: 1}
	if err := r.look(files); err != nil { // what there is before
		return err
	}
	if r.st, err = s.Create(volume); err != nil {
		return err
	}
	looks := 0
	for end := time.Now().Add(long); time.Now().Before(end); looks++ {
		next := time.Now().Add(every)
		if err := r.look(files); err != nil {
			return err
		}
		if err := r.st.Append(&history.Record{Kind: history.Barrier, Seq: r.seq, Time: r.now()}); err != nil {
			return err
		}
		if as > 0 {
			if err := r.st.Roll(); err != nil {
				return err
			}
			r.seq++ // a root
			r.ahead += as
		}
		time.Sleep(time.Until(next))
	}
	if err := s.Close(); err != nil {
		return err
	}
	fmt.Printf("%d looks, %d MiB written, history takes %d KiB\n", looks, r.bytes>>20, s.Bytes()>>10)
	return nil
}

// look appends what has changed. A file that vanishes meanwhile is none.
func (r *recorder) look(files string) error {
	return filepath.WalkDir(files, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		now, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		now = append(now, make([]byte, -len(now)&(block.Size-1))...)
		info, err := e.Info()
		if err != nil {
			return nil
		}
		id := info.Sys().(*syscall.Stat_t).Ino
		was := r.files[id]
		r.files[id] = now
		if r.st == nil {
			return nil
		}
		base, ok := r.bases[id]
		if !ok {
			base = uint64(len(r.bases)) << 32
			r.bases[id] = base
		}
		for at := 0; at < len(now); at += block.Size {
			p := now[at:][:block.Size]
			if at < len(was) && bytes.Equal(p, was[at:][:block.Size]) || at >= len(was) && allZero(p) {
				continue
			}
			r.seq++
			r.bytes += block.Size
			if err := r.st.Append(&history.Record{Kind: history.Write, Seq: r.seq, Time: r.now(), Off: base + uint64(at), Len: block.Size, Payload: p}); err != nil {
				return err
			}
		}
		return nil
	})
}

func allZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

// write is a block that a history has.
type write struct {
	block uint64
	pos   uint64
	sum   uint32
}

func thin(to, dir string, many bool) error {
	level := map[string]history.Level{"flushes": history.Flushes, "minutes": history.Minutes, "hours": history.Hours}[to]
	if level == history.Whole {
		return fmt.Errorf("no level %q\n%s", to, usage)
	}
	s, err := open(dir)
	if err != nil {
		return err
	}
	st := s.Stream(volume)
	before, roots := st.Bytes(), []history.Root{{Seq: 1}}
	err = st.Each(0, ^uint64(0), func(r *history.Record) error {
		if last := roots[len(roots)-1].Seq; r.Seq+1 > last && (many && r.Kind == history.Barrier || r.Seq == st.LastSeq()) {
			roots = append(roots, history.Root{Seq: r.Seq + 1, Time: r.Time})
		}
		return nil
	})
	if err != nil {
		return err
	}
	began := time.Now()
	for more := true; more && err == nil; {
		_, more, err = st.Thin(&history.Thinning{Roots: roots, Level: func(int64) history.Level { return level }, Pace: func(int) error { return nil }})
	}
	if err != nil {
		return err
	}
	took := time.Since(began)
	release := st.Pin(0, ^uint64(0))
	defer release()
	var all []write
	newest, payload := map[uint64]write{}, 0
	began = time.Now()
	err = st.Each(0, ^uint64(0), func(r *history.Record) error {
		if r.Kind == history.Write {
			payload += int(r.Len)
			for i, sum := range r.Sums {
				w := write{r.Off/block.Size + uint64(i), r.Pos + uint64(i)*block.Size, sum}
				all = append(all, w)
				newest[w.block] = w
			}
		}
		return nil
	})
	indexes := time.Since(began)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d KiB before, %d KiB after, %d KiB of payload, %d blocks; thinned in %v, indexes read in %v\n", to, before>>10, st.Bytes()>>10, payload>>10, len(newest), took.Round(time.Millisecond), indexes.Round(10*time.Microsecond))
	if len(all) == 0 {
		return s.Close()
	}
	rng := rand.New(rand.NewPCG(1, 1))
	some := make([]write, 4000)
	for i := range some {
		some[i] = all[rng.IntN(len(all))]
	}
	last := make([]write, 0, len(newest))
	for _, w := range newest {
		last = append(last, w)
	}
	slices.SortFunc(last, func(a, b write) int { return int(int64(a.block) - int64(b.block)) })
	for _, read := range []struct {
		what string
		of   []write
	}{{"at random", some}, {"the newest state, in the order of blocks", last}} {
		p := make([]byte, block.Size)
		began := time.Now()
		for _, w := range read.of {
			if err := s.ReadAt(p, w.pos, []uint32{w.sum}); err != nil {
				return err
			}
		}
		fmt.Printf("  read %s: %d blocks, %v each\n", read.what, len(read.of), (time.Since(began) / time.Duration(len(read.of))).Round(10*time.Nanosecond))
	}
	return s.Close()
}
