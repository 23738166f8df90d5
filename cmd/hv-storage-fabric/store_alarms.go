package main

import (
	"encoding/json"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

func newStoreAlarms(a *app) *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "alarms",
		Short: "Tell what is near full, overcommitted, degraded or damaged, and what to do about it",
		Long: `Tell what is near full (from 85 % on), nearly full (from 95 % on) or full (writes are refused): the file system of the store, and quotas of volumes; whether the volumes promise
many times what there is, redundancy over disks is degraded, or damage was found that is not mended; and the next step. The marks are the settings alarms.* of hvd.
With --follow it goes on and tells what changes, until it is interrupted or hvd ends. With -o json each is one document on a line of its own with --follow, else all are an array.`,
		Example: "  hv-storage-fabric store alarms\n  hv-storage-fabric store alarms --follow -o json | while read alarm; do notify \"$alarm\"; done",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			all := []client.Alarm{}
			err = api.Alarms(c.Context(), follow, func(alarm client.Alarm) error {
				switch {
				case !follow:
					all = append(all, alarm)
				case a.output == "json":
					return json.NewEncoder(a.out).Encode(alarm)
				default:
					a.say("%s", alarmText(alarm))
				}
				return nil
			})
			if err != nil || follow {
				return err
			}
			return a.show(all, func() {
				for _, alarm := range all {
					a.say("%s", alarmText(alarm))
				}
				if len(all) == 0 {
					a.say("there is no alarm")
				}
			})
		},
	}
	c.Flags().BoolVar(&follow, "follow", false, "go on and tell what changes")
	return c
}

// alarmText is one line for people.
func alarmText(m client.Alarm) string {
	text := m.At.Local().Format(time.RFC3339) + "  " + m.Text
	if m.Next != "" {
		text += "; next: " + m.Next
	}
	return text
}
