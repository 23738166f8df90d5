// Command logio measures what appending to a log costs through the page cache and around it (O_DIRECT), for RFC 13: docs/rfc/0013-log-io.md.
//
// It makes one file, writes it once so that its blocks are what those of a recycled log file are, and goes round in it with records as the log's: 116 B in front of 4 KiB
// of payload, one behind the other, zeroes up to the end of the page after each append. Run it alone on the machine:
//
//	go run ./bench/logio -dir /var/tmp -seconds 3
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// mix is what a guest does to the log.
type mix struct {
	name    string
	record  int   // bytes of payload in a record
	records int   // in an append
	sync    int64 // bytes after which the log is synced; 0: after each append
	read    bool  // another goroutine reads 4 KiB at random of what was written last
}

var mixes = []mix{
	{"4 KiB and a sync each", 4 << 10, 1, 0, false},
	{"32 of 4 KiB and a sync each", 4 << 10, 32, 0, false},
	{"32 of 4 KiB", 4 << 10, 32, 64 << 20, false},
	{"128 KiB", 128 << 10, 1, 64 << 20, false},
	{"1 MiB", 1 << 20, 1, 64 << 20, false},
	{"32 of 4 KiB, read back meanwhile", 4 << 10, 32, 64 << 20, true},
	{"1 MiB, read back meanwhile", 1 << 20, 1, 64 << 20, true},
}

func main() {
	dir := flag.String("dir", os.TempDir(), "folder for the file")
	size := flag.Int64("mib", 512, "length of the file, MiB")
	seconds := flag.Float64("seconds", 3, "length of each run")
	rounds := flag.Int("rounds", 1, "how often each way has its turn")
	flag.Parse()
	if err := run(*dir, *size<<20, time.Duration(*seconds*float64(time.Second)), *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "logio:", err)
		os.Exit(1)
	}
}

func run(dir string, size int64, length time.Duration, rounds int) error {
	tmp, err := os.MkdirTemp(dir, "logio")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "log")
	if err := prewrite(path, size); err != nil {
		return err
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "mix\tway\tappends/s\tMB/s\tp50 µs\tp99 µs\tCPU s/GiB\tdevice B/B\treads/s\tread p50 µs")
	for _, m := range mixes {
		for range rounds {
			for _, w := range []way{{"page cache", 0, 0}, {"O_DIRECT", unix.O_DIRECT, 0}, {"O_DIRECT and RWF_DSYNC", unix.O_DIRECT, unix.RWF_DSYNC}} {
				if w.each != 0 && m.sync != 0 {
					continue // each append would be a sync
				}
				r, err := measure(path, size, m, w, length)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", m.name, w.name, err)
				}
				fmt.Fprintf(out, "%s\t%s\t%s\n", m.name, w.name, r)
				if err := out.Flush(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// prewrite makes the file.
func prewrite(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size && err == nil; off += int64(len(buf)) {
		_, err = f.WriteAt(buf, off)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// result of one run.
type result struct {
	latencies     []time.Duration // of appends, with their sync
	reads         []time.Duration
	bytes         int64 // of payload
	device        int64
	took, cpu     time.Duration
	appends, read int
}

func (r result) String() string {
	per := func(n int) string { return strconv.FormatFloat(float64(n)/r.took.Seconds(), 'f', 0, 64) }
	s := fmt.Sprintf("%s\t%.0f\t%.1f\t%.1f\t%.2f\t%.2f\t", per(r.appends), float64(r.bytes)/1e6/r.took.Seconds(), quantile(r.latencies, 0.5), quantile(r.latencies, 0.99),
		r.cpu.Seconds()/(float64(r.bytes)/(1<<30)), float64(r.device)/float64(r.bytes))
	if r.read == 0 {
		return s + "\t"
	}
	return s + fmt.Sprintf("%s\t%.1f", per(r.read), quantile(r.reads, 0.5))
}

// quantile returns a quantile in microseconds.
func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return float64(d[int(q*float64(len(d)-1))]) / 1e3
}

// processTime is the CPU time of this process so far.
func processTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // the arguments are right, and nothing else fails
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// deviceBytes is what was written so far to the device under a file, by whomever; 0 where the kernel does not tell. What it tells of a process counts whole folios of the page
// cache for each block in them.
func deviceBytes(fd int) int64 {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 7 {
		return 0
	}
	sectors, _ := strconv.ParseInt(fields[6], 10, 64)
	return 512 * sectors
}
