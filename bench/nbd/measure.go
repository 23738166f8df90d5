package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

// Conditions of a figure.
const (
	leastDestaged  = 0.90 // of the live bytes, within destageTime after a job that writes
	destageTime    = 30 * time.Second
	mostLag        = 10 * time.Second // age of the oldest undestaged byte while a stream is acknowledged
	leastReduction = 1.5              // raw bytes per stored byte, of data that deflate halves
	quietShare     = 0.05             // of one CPU, that servers may take before another one is measured
	quietTime      = 90 * time.Second
)

// runResult is what one run of one server came to.
type runResult struct {
	fioResult
	Server  string   `json:"server"`
	Pair    int      `json:"pair"` // 0: the warm-up
	Seed    int      `json:"seed"`
	Command string   `json:"command"`
	Load    string   `json:"load"` // average of one minute, when it began
	Void    []string `json:"void,omitempty"`

	CPUSeconds           float64 `json:"cpuSeconds"`
	CPUPerGiB            float64 `json:"cpuSecondsPerGiB"`
	CPUPerGiBAfter       float64 `json:"cpuSecondsPerGiBWithWorkAfter"` // and what the server did afterwards, until it was quiet
	AnonBytes            int64   `json:"anonBytes"`                     // most of it
	FileBytes            int64   `json:"fileBytes"`
	DiskBytes            uint64  `json:"diskBytes"` // written to the device until the server was quiet and all synced
	DiskBytesPerByte     float64 `json:"diskBytesPerGuestByte"`
	DiskKnown            bool    `json:"diskKnown"`
	FrameHitRate         float64 `json:"frameHitRate,omitempty"`
	MostLagSeconds       float64 `json:"mostLagSeconds,omitempty"`
	UndestagedBytes      uint64  `json:"undestagedBytes,omitempty"` // at the end of the wait below
	DestagedAfterSeconds float64 `json:"destagedAfterSeconds,omitempty"`
	DestagedShare        float64 `json:"destagedShare,omitempty"`
	Reduction            float64 `json:"reduction,omitempty"`

	SettledBytesPerSecond float64 `json:"settledBytesPerSecond,omitempty"`
}

// server is whose turn it is.
type server struct {
	name string
	uri  string
	proc *process
	hvd  *daemon // nil for a peer
}

// measure has fio do a job once with one server, alone.
func (b *bench) measure(ctx context.Context, j job, s server, pair, seed int) (r runResult, err error) {
	args := b.arguments(j, s.uri, seed)
	r = runResult{Server: s.name, Pair: pair, Seed: seed, Command: b.short(append([]string{"fio"}, args...)), Load: loadAverage()}
	if busy := b.quiet(ctx); busy != "" {
		r.Void = append(r.Void, busy)
	}
	r.Void = append(r.Void, b.stateVoid(s)...)
	diskBefore, _ := b.device.written()
	before, err := s.proc.group.usage()
	if err != nil {
		return r, err
	}
	var statsBefore client.Stats
	if s.hvd != nil {
		if statsBefore, err = s.hvd.stats(ctx); err != nil {
			return r, err
		}
	}
	w := watchServer(ctx, s)
	profiled := b.startProfile(ctx, j, s, pair)
	began := time.Now()
	results, err := b.fio(ctx, args)
	ended := time.Now()
	after, err2 := s.proc.group.usage()
	w.stop(&r)
	if err == nil {
		err = err2
	}
	if err3 := profiled(); err == nil {
		err = err3
	}
	if err != nil {
		return r, err
	}
	r.fioResult = results[0]
	moved := gib(r.Bytes)
	r.CPUSeconds = (after.cpu - before.cpu).Seconds()
	r.CPUPerGiB = r.CPUSeconds / moved
	if s.hvd != nil {
		if err := b.afterHVD(ctx, j, s, &r, statsBefore, began, ended); err != nil {
			return r, err
		}
	}
	b.quiet(ctx)
	diskAfter, known := b.device.written()
	r.DiskKnown = known && j.writes
	if r.DiskKnown {
		r.DiskBytes = diskAfter - diskBefore
		r.DiskBytesPerByte = float64(r.DiskBytes) / float64(r.Bytes)
	}
	if after, err = s.proc.group.usage(); err != nil {
		return r, err
	}
	r.CPUPerGiBAfter = (after.cpu - before.cpu).Seconds() / moved
	return r, ctx.Err()
}

// arguments of fio for a job.
func (b *bench) arguments(j job, uri string, seed int) []string {
	args := append(fioArgs(uri, seed, fields(j.fio)...), fmt.Sprintf("--size=%d", b.size(j.reach)))
	if j.ioGiB != 0 {
		return append(args, fmt.Sprintf("--io_size=%d", uint64(j.ioGiB)<<30))
	}
	return append(args, "--time_based", fmt.Sprintf("--runtime=%d", b.duration(j)))
}

// duration of a timed job in seconds.
func (b *bench) duration(j job) int {
	if b.o.seconds != 0 && !j.fixed {
		return b.o.seconds
	}
	return j.seconds
}

func (b *bench) stateVoid(s server) []string {
	if s.hvd == nil {
		return nil
	}
	return b.void
}

// afterHVD looks at what hvd did with what was written, which a figure has to wait for.
func (b *bench) afterHVD(ctx context.Context, j job, s server, r *runResult, before client.Stats, began, ended time.Time) error {
	stats, err := s.hvd.stats(ctx)
	if err != nil {
		return err
	}
	hits0, misses0 := frameCounts(before)
	hits, misses := frameCounts(stats)
	if looked := hits - hits0 + misses - misses0; looked > 0 && !j.writes {
		r.FrameHitRate = float64(hits-hits0) / float64(looked)
	}
	if !j.writes {
		return nil
	}
	if j.settles {
		if err := s.hvd.settle(ctx); err != nil {
			return err
		}
		r.SettledBytesPerSecond = float64(r.Bytes) / time.Since(began).Seconds()
		if r.MostLagSeconds >= mostLag.Seconds() {
			r.Void = append(r.Void, fmt.Sprintf("destage was %.1f s behind, at most %.0f are allowed", r.MostLagSeconds, mostLag.Seconds()))
		}
	}
	live := float64(b.size(overVolume)) // filled once, all of it
	if j.reach == overSet {
		live = float64(b.size(overSet))
	}
	for {
		if stats, err = s.hvd.stats(ctx); err != nil {
			return err
		}
		r.UndestagedBytes, r.DestagedAfterSeconds = stats.UndestagedBytes, time.Since(ended).Seconds()
		r.DestagedShare = max(0, 1-float64(stats.UndestagedBytes)/live)
		if r.DestagedShare >= leastDestaged || time.Since(ended) >= destageTime {
			break
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	r.Reduction = stats.CompressionRatio
	if r.DestagedShare < leastDestaged || r.DestagedAfterSeconds > destageTime.Seconds()+1 {
		r.Void = append(r.Void, fmt.Sprintf("%.0f %% of the live bytes destaged %.0f s after the job, at least %.0f %% are wanted within %.0f s",
			100*r.DestagedShare, r.DestagedAfterSeconds, 100*leastDestaged, destageTime.Seconds()))
	}
	if r.Reduction < leastReduction {
		r.Void = append(r.Void, fmt.Sprintf("stored at %.2f : 1, at least %.1f are wanted of this data", r.Reduction, leastReduction))
	}
	return nil
}

// quiet waits until no server does anything any more and all is synced. It says who does not come to rest.
func (b *bench) quiet(ctx context.Context) string {
	deadline := time.Now().Add(quietTime)
	for {
		b.device.written() // syncs
		busy := b.busy(ctx, time.Second)
		if busy == "" || ctx.Err() != nil {
			return ""
		}
		if time.Now().After(deadline) {
			return busy + " was still busy"
		}
	}
}

// busy returns the server that takes CPU time, if there is one.
func (b *bench) busy(ctx context.Context, over time.Duration) string {
	servers := b.servers()
	before := make([]usage, len(servers))
	for k, s := range servers {
		before[k], _ = s.proc.group.usage() // a server that is gone shows in what is asked of it next
	}
	if sleep(ctx, over) != nil {
		return ""
	}
	for k, s := range servers {
		if now, err := s.proc.group.usage(); err == nil && float64(now.cpu-before[k].cpu) > quietShare*float64(over) {
			return s.name
		}
	}
	return ""
}

// servers in the order of their turns: hvd has a peer before and behind it.
func (b *bench) servers() []server {
	var all []server
	for _, p := range b.peers {
		all = append(all, server{name: p.name, uri: p.uri(), proc: p.proc})
	}
	for _, d := range b.extra {
		if d.proc != nil {
			all = append(all, server{name: "hvd", uri: d.uri(disk), proc: d.proc, hvd: d})
		}
	}
	if b.hvd == nil || b.hvd.proc == nil {
		return all
	}
	ours := server{name: "hvd", uri: b.hvd.uri(disk), proc: b.hvd.proc, hvd: b.hvd}
	if len(all) == 0 {
		return []server{ours}
	}
	return append([]server{all[0], ours}, all[1:]...)
}

// short shows a command line without the folder and the empty settings of this run.
func (b *bench) short(args []string) string {
	line := strings.Join(args, " ")
	line = strings.ReplaceAll(line, b.dir+"/", "$DIR/")
	return strings.ReplaceAll(line, b.o.bin+"/", "bin/")
}

// watcher samples a server's memory, and of hvd how far destage is behind.
type watcher struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	most   usage
	lag    float64
}

func watchServer(ctx context.Context, s server) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{cancel: cancel}
	w.done.Go(func() {
		for {
			if u, err := s.proc.group.usage(); err == nil {
				w.most.anon, w.most.file = max(w.most.anon, u.anon), max(w.most.file, u.file)
			}
			if s.hvd != nil {
				if stats, err := s.hvd.stats(ctx); err == nil {
					w.lag = max(w.lag, stats.DestageLagSeconds)
				}
			}
			if sleep(ctx, time.Second) != nil {
				return
			}
		}
	})
	return w
}

func (w *watcher) stop(r *runResult) {
	w.cancel()
	w.done.Wait()
	r.AnonBytes, r.FileBytes, r.MostLagSeconds = w.most.anon, w.most.file, w.lag
}
