package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
)

// job is one line of the comparison, or, with apart, something that is measured in its own way.
type job struct {
	name    string
	title   string
	fio     string // arguments that say what fio does
	seconds int    // of a timed job; 0: one pass, or ioGiB
	fixed   bool   // the options do not change seconds
	ioGiB   int    // what is moved altogether, when not timed
	reach   reach
	state   state
	metric  metric
	writes  bool
	settles bool // the time until all is reduced is measured too
	logCap  int  // GiB, instead of what the options say
	aims    []aim
	apart   func(context.Context, *bench) (section, error)
}

// reach is the part of the volume that a job goes over.
type reach int

const (
	overSet reach = iota
	overFitSet
	overVolume
)

// state is where hvd has the data, and what the caches hold, when a job begins.
type state int

const (
	stateWritten state = iota
	stateLog
	stateFit
	stateDestaged
	stateCold
)

func (s state) String() string {
	return map[state]string{
		stateWritten:  "hvd: as the writes before left it, after the log had wrapped three times. Peers: the file in the page cache",
		stateLog:      "hvd: destage-after 24h, stream-room 0, every block of the working set written once, at random, so that it lies raw in the log; page cache as it is. Peers: the file in the page cache",
		stateFit:      "hvd: all destaged; memory so large that its frame cache holds 1.25 times the working set; read once at random. Peers: the same, in the page cache",
		stateDestaged: "hvd: all destaged; memory as set; read once at random. Peers: read once at random, the file in the page cache",
		stateCold:     "before each run: hvd, all destaged, is started anew, and the system's caches are dropped, for the peers too",
	}[s]
}

// metric is what of a run is compared.
type metric int

const (
	iops metric = iota
	rate
	median
	settledRate
)

func (m metric) unit() string {
	return map[metric]string{iops: "IOPS", rate: "MB/s", median: "µs at the median", settledRate: "MB/s with destage"}[m]
}

// of returns the metric's value of a run. A server that reduces nothing has settled when it has replied.
func (m metric) of(r runResult) float64 {
	switch m {
	case iops:
		return r.IOPS
	case rate:
		return r.BytesPerSecond / 1e6
	case median:
		return r.P50
	}
	if r.SettledBytesPerSecond > 0 {
		return r.SettledBytesPerSecond / 1e6
	}
	return r.BytesPerSecond / 1e6
}

// aim is what the ratio of hvd to a peer shall be: at least, or at most.
type aim struct {
	peer   string
	metric metric
	ratio  float64 // 0: nothing
	most   bool
}

// met reports whether a ratio is good enough.
func (a aim) met(ratio float64) bool {
	if a.most {
		return ratio <= a.ratio
	}
	return ratio >= a.ratio
}

func (a aim) String() string {
	word := "at least"
	if a.most {
		word = "at most"
	}
	return fmt.Sprintf("%s %.2f ×", word, a.ratio)
}

// against makes the aims of a job, at most for latency and at least for all else: one ratio to qemu-nbd, and one to nbdkit if it is not 0.
func against(m metric, qemu, nbdkit float64) []aim {
	aims := []aim{{"qemu-nbd", m, qemu, m == median}}
	if nbdkit != 0 {
		aims = append(aims, aim{"nbdkit", m, nbdkit, m == median})
	}
	return aims
}

const (
	random4K     = "--bs=4k --norandommap "
	sequential1M = "--bs=1m --iodepth=8 "
)

// tableJobs are the comparison, in an order that changes hvd's state seldom.
func tableJobs() []job {
	return []job{
		{name: "randwrite", title: "4 KiB random write, depth 32", fio: random4K + "--rw=randwrite --iodepth=32", seconds: 60, writes: true, aims: against(iops, 3.0, 2.0)},
		{name: "hotwrite", title: "4 KiB random write, depth 32, 80 % on a hot tenth, 20 % uniform on the rest", fio: random4K + "--rw=randwrite --iodepth=32 --random_distribution=zoned:80/10:20/90",
			seconds: 60, writes: true, aims: against(iops, 2.5, 0)},
		{name: "flush", title: "4 KiB random write and flush each, depth 1", fio: random4K + "--rw=randwrite --iodepth=1 --fsync=1", seconds: 20, writes: true, aims: against(iops, 1.5, 1.2)},
		{name: "seqwrite", title: "1 MiB sequential write, depth 8, 8 GiB", fio: sequential1M + "--rw=write", ioGiB: 8, reach: overVolume, writes: true, settles: true,
			aims: append(against(rate, 1.5, 0), against(settledRate, 0.6, 0)...)},
		{name: "read-log", title: "4 KiB random read, depth 32, still raw in the log", fio: random4K + "--rw=randread --iodepth=32", seconds: 20, state: stateLog, aims: against(iops, 3.0, 1.2)},
		{name: "latency-log", title: "4 KiB random read, depth 1, still raw in the log", fio: random4K + "--rw=randread --iodepth=1", seconds: 20, state: stateLog, metric: median, aims: against(median, 0.7, 0.9)},
		{name: "seqread-log", title: "1 MiB sequential read, depth 8, in memory: raw in the log", fio: sequential1M + "--rw=read", seconds: 20, state: stateLog, metric: rate, aims: against(rate, 2.0, 1.0)},
		{name: "read-cached", title: "4 KiB random read, depth 32, destaged and cached by hvd", fio: random4K + "--rw=randread --iodepth=32", seconds: 20, reach: overFitSet, state: stateFit, aims: against(iops, 2.5, 1.0)},
		{name: "latency-cached", title: "4 KiB random read, depth 1, destaged and cached by hvd", fio: random4K + "--rw=randread --iodepth=1", seconds: 20, reach: overFitSet, state: stateFit, metric: median,
			aims: against(median, 0.7, 0.9)},
		{name: "seqread-cached", title: "1 MiB sequential read, depth 8, in memory: destaged and cached by hvd", fio: sequential1M + "--rw=read", seconds: 20, reach: overFitSet, state: stateFit, metric: rate,
			aims: against(rate, 2.0, 1.0)},
		{name: "read-destaged", title: "4 KiB random read, depth 32, destaged, the whole set with hvd's memory as set", fio: random4K + "--rw=randread --iodepth=32", seconds: 20, state: stateDestaged},
		{name: "latency-destaged", title: "4 KiB random read, depth 1, destaged, the whole set with hvd's memory as set", fio: random4K + "--rw=randread --iodepth=1", seconds: 20, state: stateDestaged, metric: median},
		{name: "seqread-destaged", title: "1 MiB sequential read, depth 8, destaged", fio: sequential1M + "--rw=read", seconds: 20, state: stateDestaged, metric: rate, aims: against(rate, 1.0, 0)},
		{name: "read-cold", title: "4 KiB random read, depth 32, destaged, all caches dropped", fio: random4K + "--rw=randread --iodepth=32", seconds: 20, state: stateCold, aims: against(iops, 0.8, 0)},
		{name: "randwrite-2g", title: "4 KiB random write, depth 32, log cap 2 GiB", fio: random4K + "--rw=randwrite --iodepth=32", seconds: 60, writes: true, logCap: 2, aims: against(iops, 1.5, 0)},
	}
}

// selectJobs finds jobs by their names, in the order of the lists.
func selectJobs(names string) ([]job, error) {
	all := slices.Concat(tableJobs(), apartJobs())
	var picked []job
	wanted := strings.Split(names, ",")
	for _, name := range wanted {
		known := name == "table" || name == "all" || slices.ContainsFunc(all, func(j job) bool { return j.name == name })
		if !known {
			return nil, fmt.Errorf("unknown job %q: --list says which there are", name)
		}
	}
	for _, j := range all {
		if slices.Contains(wanted, j.name) || slices.Contains(wanted, "all") || slices.Contains(wanted, "table") && j.apart == nil {
			picked = append(picked, j)
		}
	}
	return picked, nil
}

func listJobs(out io.Writer) {
	for _, j := range slices.Concat(tableJobs(), apartJobs()) {
		fmt.Fprintf(out, "%-18s %s\n", j.name, j.title)
		for _, a := range j.aims {
			fmt.Fprintf(out, "%-18s   %s of %s, %s\n", "", a, a.peer, a.metric.unit())
		}
	}
}

func fields(s string) []string { return strings.Fields(s) }
