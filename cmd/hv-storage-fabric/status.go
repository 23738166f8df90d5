package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

// retryEvery is how often status --wait asks again.
const retryEvery = 100 * time.Millisecond

func newStatus(a *app) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:     "status",
		Short:   "Tell whether hvd is ready, and how it is",
		Long:    "Tell whether hvd is ready, and how it is. The exit code is 0 when it is ready.",
		Example: "  hv-storage-fabric status --wait 10s",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if wait < 0 {
				return usagef("--wait %v is negative", wait)
			}
			status, err := a.status(c.Context(), wait)
			if err != nil {
				return err
			}
			return a.show(status, func() { a.statusTable(status) })
		},
	}
	c.Flags().DurationVar(&wait, "wait", 0, "how long to wait until hvd is ready")
	return c
}

// status asks until somebody answers or the wait is over.
func (a *app) status(ctx context.Context, wait time.Duration) (client.Status, error) {
	deadline := time.Now().Add(wait)
	for {
		api, err := a.connect() // anew: the default endpoint depends on which socket is there
		if err != nil {
			return client.Status{}, err
		}
		reply, err := client.GetStatus(ctx, api)
		api.Close()
		var unreachable *client.UnreachableError
		if err == nil {
			return reply.Status, nil
		}
		if !errors.As(err, &unreachable) || time.Now().After(deadline) {
			return client.Status{}, err
		}
		select {
		case <-ctx.Done():
			return client.Status{}, ctx.Err()
		case <-time.After(retryEvery):
		}
	}
}

func (a *app) statusTable(s client.Status) {
	a.pairs([][2]string{
		{"state", "ready"},
		{"version", s.Version},
		{"data directory", s.DataDir},
		{"process", fmt.Sprint(s.Pid)},
		{"up", (time.Duration(s.UptimeSeconds) * time.Second).String()},
		{"volumes", fmt.Sprintf("%d, %d attached", s.Volumes, s.Attached)},
		{"NBD connections", fmt.Sprint(s.Connections)},
		{"NBD socket", s.NbdSocket},
		{"NBD over TCP", s.NbdTcp},
		{"space", s.Space},
		{"encryption", encryptionText(s.Encryption)},
	})
	for _, alarm := range s.Alarms {
		a.note("alarm: %s", alarm)
	}
	for _, fault := range s.Faults {
		a.note("FAULTS ON PURPOSE in volume %s", fault)
	}
	for _, problem := range s.Problems {
		a.note("problem: %s", problem)
	}
}

// encryptionText says who can open the store.
func encryptionText(e *client.Encryption) string {
	if e == nil {
		return "none"
	}
	var all []string
	for _, r := range e.Recipients {
		name := r.Recipient
		if len(name) > 24 { // one of the post-quantum hybrid has some 2,000 characters
			name = name[:20] + "…"
		}
		if r.Label != "" {
			name += " (" + r.Label + ")"
		}
		all = append(all, name)
	}
	return fmt.Sprintf("at rest, master key %d, opened by %s", e.MasterKey, strings.Join(all, ", "))
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this command",
		Example: "  hv-storage-fabric version -o json",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			return a.show(map[string]string{"version": version}, func() { a.say("hv-storage-fabric %s", version) })
		},
	}
}
