package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func newSupport(a *app) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "support",
		Short: "Write a bundle of counters and settings for a report of a fault",
		Long: `Write a gzipped tar of versions, settings, counters, volumes, attachments and goroutine stacks. There is no guest data in it and no
secret, but the names of volumes, snapshots and tokens are.`,
		Example: "  hv-storage-fabric support --file /tmp/hvd-support.tar.gz",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				file = "hvd-support-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			bundle, err := api.Support(c.Context())
			if err != nil {
				return err
			}
			size, err := save(file, bundle)
			if err = errors.Join(err, bundle.Close()); err != nil {
				return fmt.Errorf("write support bundle %s: %w", file, err)
			}
			return a.show(map[string]any{"file": file, "sizeBytes": size}, func() { a.say("wrote %s", file) })
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "where to write it (default: hvd-support-TIME.tar.gz here)")
	return c
}

// save writes a new file that only the user can read; a partial one does not stay.
func save(path string, r io.Reader) (int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return n, errors.Join(err, os.Remove(path))
	}
	return n, nil
}
