package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newStoreGC(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "gc", Short: "Give back what nothing refers to, and prove first that nothing does"})
	c.AddCommand(
		a.newGarbageJob("run", "Give back all that is dead in segments now",
			`Empty the segments that hold much that nothing refers to, audit what is about to be deleted, and delete it. hvd does the same by itself in the background,
within store.gc-rate and store.gc-requests; this goes further and waits. Ctrl-C ends it after the batch it is at, and what was done stays done.
What is in the log is not touched; store settle moves that into segments first.`,
			func(ctx context.Context, api *client.Client) (client.Garbage, error) {
				r, err := client.CollectGarbage(ctx, api)
				if err != nil {
					return client.Garbage{}, err
				}
				return r.CollectGarbage, nil
			}),
		a.newGarbageJob("audit", "Mark every chunk that can be reached and compare that with what is stored",
			`Mark every chunk that a volume, a snapshot or a running job can reach in an exact bitmap, beside everything that goes on, and compare that with the rows of chunks,
the counts of references and the live counters of segments. The same is done by itself before any segment is deleted for good: nothing goes that something reaches.
The exit code is 1 if that is not as it should be. Ctrl-C ends it.`,
			func(ctx context.Context, api *client.Client) (client.Garbage, error) {
				r, err := client.AuditGarbage(ctx, api)
				if err != nil {
					return client.Garbage{}, err
				}
				return r.AuditGarbage, nil
			}),
		a.garbageCommand("status", "Show what is dead, what was given back, and the last audit", func(ctx context.Context, api *client.Client) (client.Garbage, error) {
			r, err := client.GetGarbage(ctx, api)
			if err != nil {
				return client.Garbage{}, err
			}
			return r.Garbage, nil
		}),
		a.garbageCommand("pause", "Stop that space is given back, across restarts of hvd", func(ctx context.Context, api *client.Client) (client.Garbage, error) {
			r, err := client.PauseGarbage(ctx, api)
			if err != nil {
				return client.Garbage{}, err
			}
			return r.PauseGarbage, nil
		}),
		a.garbageCommand("resume", "Let space be given back again", func(ctx context.Context, api *client.Client) (client.Garbage, error) {
			r, err := client.ResumeGarbage(ctx, api)
			if err != nil {
				return client.Garbage{}, err
			}
			return r.ResumeGarbage, nil
		}),
	)
	return c
}

// garbageCommand makes a command without arguments that shows garbage collection.
func (a *app) garbageCommand(use, short string, ask func(context.Context, *client.Client) (client.Garbage, error)) *cobra.Command {
	return shown(a, "store gc", use, short, ".heldUnusedBytes", ask, a.showGarbage)
}

// newGarbageJob makes a command that starts a job and waits for it.
func (a *app) newGarbageJob(use, short, long string, begin func(context.Context, *client.Client) (client.Garbage, error)) *cobra.Command {
	var background, progress bool
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Args: exactly(),
		Example: "  hv-storage-fabric store gc " + use + "\n  hv-storage-fabric store gc " + use + " --background; hv-storage-fabric store gc status",
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			g, err := begin(c.Context(), api)
			if err != nil {
				return err
			}
			if !background {
				if g, err = a.waitGarbage(c.Context(), api, g, progress); err != nil {
					return err
				}
			}
			if err := a.showGarbage(g); err != nil || background {
				return err
			}
			if g.Job.Error != "" {
				return errors.New(g.Job.Error)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&background, "background", false, "begin and return")
	c.Flags().BoolVar(&progress, "progress", false, "say how far it is, also where the error stream is no terminal")
	return c
}

// garbagePhases says what a job is at.
var garbagePhases = map[string]string{"reclaim": "giving back what is dead", "audit": "auditing", "checkpoint": "writing a checkpoint of the metadata"}

// cancelPatience is how long a command that was interrupted waits for hvd to end the job.
const cancelPatience = 5 * time.Second

// waitGarbage returns when the job has ended. An interrupt ends the job.
func (a *app) waitGarbage(ctx context.Context, api *client.Client, g client.Garbage, progress bool) (client.Garbage, error) {
	run := g.Job.Run
	meter := a.newMeter("collecting garbage", 0, progress)
	defer meter.End()
	for g.Job.Run == run && g.Job.Running {
		select {
		case <-ctx.Done():
			patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelPatience)
			defer cancel()
			if _, err := client.CancelGarbage(patient, api); err != nil {
				return g, fmt.Errorf("stopped waiting, the job goes on: %w", err)
			}
			return g, fmt.Errorf("cancelled; what was given back stays so: %w", ctx.Err())
		case <-time.After(settleEvery):
		}
		reply, err := client.GetGarbage(ctx, api)
		if ctx.Err() != nil {
			continue
		}
		if err != nil {
			return g, err
		}
		g = reply.Garbage
		if what := garbagePhases[g.Job.Phase]; what != "" && what != meter.What {
			meter.What = what
		}
		meter.Total = g.Job.DoneBytes + g.Job.LeftBytes
		meter.At(g.Job.DoneBytes)
	}
	return g, nil
}

func (a *app) showGarbage(g client.Garbage) error {
	human := func(n uint64) string { return units.Size(n).Human() }
	return a.show(g, func() {
		state := g.State
		if j := g.Job; j.Running {
			state += fmt.Sprintf(" (%s: %s, %s of %s)", j.Kind, j.Phase, human(j.DoneBytes), human(j.DoneBytes+j.LeftBytes))
		}
		a.pairs([][2]string{
			{"state", state},
			{"held but unused", human(g.HeldUnusedBytes)},
			{"in pieces", counted(g.RegionsInPieces, "region") + " of 16 MiB, to be cut anew"},
			{"to be emptied", fmt.Sprintf("%s with %s that is dead", counted(g.Victims, "segment"), human(g.VictimBytes))},
			{"to be deleted", fmt.Sprintf("%s, %s, after an audit and a checkpoint", counted(g.WaitingFiles, "file"), human(g.WaitingBytes))},
			{"given back", fmt.Sprintf("%s, %s; %s moved for that", counted(int(g.SegmentsFreed), "segment"), human(g.FreedBytes), human(g.MovedBytes))},
			{"budget", fmt.Sprintf("%s/s, %d requests a second; a quarter while guests are served", human(g.BytesPerSecond), g.RequestsPerSecond)},
			{"audit", auditLine(g.Audit)},
		})
		rows := [][]string{}
		for _, p := range g.PutOff {
			rows = append(rows, []string{fmt.Sprintf("%06x", p.Segment), fmt.Sprint(p.Tries), p.Until.Local().Format(time.RFC3339), p.Reason})
		}
		a.section([]string{"PUT OFF", "TRIES", "UNTIL", "REASON"}, rows)
	})
}

// auditLine says in a line what the last audit found.
func auditLine(l *client.Audit) string {
	switch {
	case l == nil:
		return "none yet"
	case l.Error != "":
		return "failed at " + l.EndedAt.Local().Format(time.RFC3339) + ": " + l.Error
	}
	line := fmt.Sprintf("passed at %s: %d chunks, %d references", l.EndedAt.Local().Format(time.RFC3339), l.Chunks, l.References)
	if !l.Passed {
		line = fmt.Sprintf("FAILED at %s: %d chunks missing, %s kept; stop hvd and run store check", l.EndedAt.Local().Format(time.RFC3339), l.Missing, counted(int(l.FilesKept), "file"))
	}
	if l.WrongReferences {
		line += "; counts of references are wrong"
	}
	if l.Unreachable > 0 {
		line += fmt.Sprintf("; %d chunks, %s, that nothing reaches", l.Unreachable, units.Size(l.UnreachableBytes).Human())
	}
	if l.WrongSegments > 0 {
		line += fmt.Sprintf("; live counters of %s are wrong", counted(int(l.WrongSegments), "segment"))
	}
	return line
}
