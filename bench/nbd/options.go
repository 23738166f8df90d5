package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// options of one run of the program.
type options struct {
	jobs    []job
	peers   []string
	pairs   int
	seconds int // of a timed job; 0: what the job says
	list    bool
	keep    bool

	logCap  units.Size
	memory  units.Size // 0: hvd's default
	volume  units.Size
	set     units.Size // the working set, at the start of the volume
	fitSet  units.Size // the one that fits hvd's cache of decoded frames
	hvdArgs []string

	bin      string
	dir      string
	markdown string
	json     string
	profile  string
}

// words is a flag that may be given several times.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

func parse(args []string) (options, error) {
	o := options{pairs: 5, logCap: 3 << 30, volume: 4 << 30, set: 2 << 30, fitSet: 512 << 20}
	var names, peers string
	flags := flag.NewFlagSet("bench/nbd", flag.ContinueOnError)
	flags.StringVar(&names, "job", "table", "what to measure, with commas between: names of --list, table for the comparison, or all")
	flags.StringVar(&peers, "peers", "qemu-nbd,nbdkit", "servers to compare with, with commas between")
	flags.IntVar(&o.pairs, "pairs", o.pairs, "how often each server has its turn")
	flags.IntVar(&o.seconds, "seconds", 0, "length of each timed run (default: what the job says, mostly 20 or 60)")
	flags.BoolVar(&o.list, "list", false, "list the jobs and their aims, and measure nothing")
	flags.BoolVar(&o.keep, "keep", false, "leave the folder behind, and say where")
	flags.Var(&o.logCap, "log-cap", "store.log-cap of hvd")
	flags.Var(&o.memory, "memory", "memory of hvd (default: its own default)")
	flags.Var(&o.volume, "volume", "size of the volume")
	flags.Var(&o.set, "set", "working set, at the start of the volume")
	flags.Var(&o.fitSet, "fit-set", "working set of the jobs that hvd shall hold in its own cache")
	flags.Var((*words)(&o.hvdArgs), "hvd-arg", "one more argument of hvd, such as --store-workers=1; may be repeated")
	flags.StringVar(&o.bin, "bin", "bin", "folder with hvd (make build)")
	flags.StringVar(&o.dir, "dir", "", "where the folder for stores and files is made (default: $TMPDIR or /var/tmp)")
	flags.StringVar(&o.markdown, "markdown", "", "file for the Markdown (default: standard output)")
	flags.StringVar(&o.json, "json", "", "file for all runs and figures as JSON")
	flags.StringVar(&o.profile, "profile", "", "folder for CPU profiles of hvd, one for each measured run of it; taking them costs it a little")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if o.dir == "" {
		if o.dir = os.Getenv("TMPDIR"); o.dir == "" {
			o.dir = "/var/tmp"
		}
	}
	var err error
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return o, err
	}
	o.peers = slices.DeleteFunc(strings.Split(peers, ","), func(s string) bool { return s == "" })
	if o.jobs, err = selectJobs(names); err != nil {
		return o, err
	}
	return o, o.validate()
}

func (o options) validate() error {
	for _, p := range o.peers {
		if !slices.Contains(peerNames, p) {
			return fmt.Errorf("unknown peer %q: there are %s", p, strings.Join(peerNames, " and "))
		}
	}
	switch {
	case o.pairs < 1 || o.pairs > 100:
		return errors.New("--pairs: want 1 to 100")
	case o.seconds < 0 || o.seconds > int(time.Hour/time.Second):
		return errors.New("--seconds: want at most an hour")
	case o.set < 64<<20 || o.set > o.volume || o.set%(1<<20) != 0:
		return errors.New("--set: want whole MiB, at least 64MiB, and no more than --volume")
	case o.fitSet < 16<<20 || o.fitSet > o.set || o.fitSet%(1<<20) != 0:
		return errors.New("--fit-set: want whole MiB, at least 16MiB, and no more than --set")
	}
	return nil
}

// needBytes is how much room the folder needs: a volume for each peer, and for hvd the log, the volume and what waits to be reclaimed.
func (o options) needBytes() uint64 {
	return uint64(o.volume)*uint64(len(o.peers)) + 3*uint64(o.logCap) + 2*uint64(o.volume) + 4<<30
}
