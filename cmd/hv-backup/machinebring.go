package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

// bring restores the volumes and then, or with live as soon as they can be used, everything else.
func (k *machineRestore) bring(ctx context.Context) error {
	if k.live {
		return k.bringLive(ctx)
	}
	for _, p := range k.parts {
		if p.exists {
			continue
		}
		if err := k.a.restoreToVolume(ctx, k.r, p.from, client.ImportOptions{Name: p.Volume, Chunking: k.chunking}); err != nil {
			return fmt.Errorf("volume %s: %w", p.Volume, err)
		}
		k.undo = append(k.undo, func(ctx context.Context) error {
			_, detachErr := client.DetachVolume(ctx, k.api, p.Volume, false)
			if said := (*client.Error)(nil); errors.As(detachErr, &said) {
				detachErr = nil // it was not attached yet
			}
			_, err := client.DeleteVolume(ctx, k.api, p.Volume)
			return errors.Join(detachErr, err)
		})
	}
	return k.finish(ctx)
}

// bringLive lets the machine be used while the content of its volumes comes, of all at once.
func (k *machineRestore) bringLive(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	begun := make(chan struct{}, len(k.parts))
	left := 0
	for _, p := range k.parts {
		if p.exists && p.whole {
			continue
		}
		left++
		g.Go(func() error {
			_, err := k.a.restoreLive(ctx, k.r, p.from, liveRestore{volume: p.Volume, chunking: k.chunking, quiet: len(k.parts) > 1, begun: func() { begun <- struct{}{} }})
			if err != nil {
				return fmt.Errorf("volume %s: %w", p.Volume, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		for range left {
			select {
			case <-begun:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := k.finish(ctx); err != nil {
			return err
		}
		text := fmt.Sprintf("domain %s is defined and can be started: virsh start %s", k.plan.Domain, k.plan.Domain)
		if k.plan.Started {
			text = fmt.Sprintf("domain %s runs; what it reads is brought first", k.plan.Domain)
		}
		if k.a.output == "json" {
			k.a.note("hv-backup: %s", text)
		} else {
			k.a.say("%s", text)
		}
		return nil
	})
	return g.Wait()
}
