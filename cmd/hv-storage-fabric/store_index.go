package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newStoreIndex(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "index",
		Short: "Show how far the index of chunks by their hash is",
		Long: `Show how far the index is by which data that is there already is found. No data depends on it, only savings: what it lacks is stored a second time,
and joined with the first when there is time.`,
		Example: "  hv-storage-fabric store index\n  hv-storage-fabric store index -o json | jq .whole",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.GetIndex(c.Context(), api)
			if err != nil {
				return err
			}
			return a.showIndex(reply.Index)
		},
	}
}

func newStoreRebuildIndex(a *app) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "rebuild-index",
		Short: "Make the index of chunks by their hash anew, while everything goes on",
		Long: `Throw the index away by which data that is there already is found, and make it anew of what the store knows of its chunks. Guests go on; no data depends on the index.
Until it is whole, some of what is written is stored a second time, and joined with the first afterwards. Without --wait it begins and returns.
It is never needed: a start that finds the index missing or damaged does the same by itself.`,
		Example: "  hv-storage-fabric store rebuild-index --wait",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.RebuildIndex(c.Context(), api)
			if err != nil {
				return err
			}
			i := reply.RebuildIndex
			if wait {
				if i, err = a.waitIndexed(c.Context(), api, i); err != nil {
					return err
				}
			}
			return a.showIndex(i)
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "return when the index has every chunk")
	return c
}

// indexedBytes is what the index reads of each chunk: a meter counts in bytes.
const indexedBytes = 48

// waitIndexed returns when the index has every chunk.
func (a *app) waitIndexed(ctx context.Context, api *client.Client, i client.Index) (client.Index, error) {
	meter := a.newMeter("indexing", 0, false)
	defer meter.End()
	for i.Indexed < i.Chunks {
		select {
		case <-ctx.Done():
			return i, fmt.Errorf("stopped waiting, the rebuild goes on: %w", ctx.Err())
		case <-time.After(settleEvery):
		}
		reply, err := client.GetIndex(ctx, api)
		if err != nil {
			return i, err
		}
		i = reply.Index
		meter.Total = i.Chunks * indexedBytes
		meter.At(i.Indexed * indexedBytes)
	}
	return i, nil
}

func (a *app) showIndex(i client.Index) error {
	return a.show(i, func() {
		whole := "whole"
		switch {
		case i.Indexed < i.Chunks:
			whole = fmt.Sprintf("not whole: %d of %d ids of chunks", i.Indexed, i.Chunks)
		case i.Doubles > 0:
			whole = "has every chunk"
		}
		a.pairs([][2]string{
			{"index", whole},
			{"not looked for yet", fmt.Sprintf("%d chunks", i.Unmatched)},
			{"there twice", fmt.Sprintf("%d chunks, to be joined or held by snapshots", i.Doubles)},
			{"joined", fmt.Sprintf("%d chunks, %s", i.Joined, units.Size(i.JoinedBytes).Human())},
			{"on disk", units.Size(i.DiskBytes).Human()},
			{"filter in memory", units.Size(i.FilterBytes).Human()},
		})
	})
}
