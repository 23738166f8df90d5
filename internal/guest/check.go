package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// CheckFiles proves that a raw root disk is a clean file system and holds, byte for byte, the files 1 to upTo of the task
// fsync-writer, and that its file rewritten in place is at least as new. It only reads the disk. The disk must have been
// unmounted; one that was taken from under a running or killed guest goes through RecoverJournal first.
// The error names the first file that is missing or different.
func CheckFiles(ctx context.Context, rawImage string, upTo int) error {
	if err := checkClean(ctx, rawImage); err != nil {
		return fmt.Errorf("check %s: %w", rawImage, err)
	}
	temp, err := os.MkdirTemp("", "hv-guest-check")
	if err != nil {
		return fmt.Errorf("check %s: %w", rawImage, err)
	}
	defer os.RemoveAll(temp)
	// debugfs exits with 0 whatever its commands met, so the files that came out are what counts.
	if _, err := (command{}).run(ctx, "debugfs", "-R", "rdump "+FilesDir+" "+temp, rawImage); err != nil {
		return fmt.Errorf("check %s: %w", rawImage, err)
	}
	files := filepath.Join(temp, FilesDir)
	for n := 1; n <= upTo; n++ {
		if err := checkFile(files, n); err != nil {
			return fmt.Errorf("check %s: %w", rawImage, err)
		}
	}
	if err := checkLatest(files, upTo); err != nil {
		return fmt.Errorf("check %s: %w", rawImage, err)
	}
	return nil
}

// checkClean runs a full e2fsck without repair. On a disk that was never unmounted e2fsck leaves the journal out and may
// find nothing wrong with the old state below it, so a journal that waits for its replay is a failure of its own.
func checkClean(ctx context.Context, rawImage string) error {
	if _, err := (command{report: true}).run(ctx, "e2fsck", "-f", "-n", rawImage); err != nil {
		return fmt.Errorf("file system is damaged: %w", err)
	}
	super, err := command{}.run(ctx, "debugfs", "-R", "features", rawImage)
	if err != nil {
		return err
	}
	if strings.Contains(string(super), "needs_recovery") {
		return errors.New("file system was not unmounted: its journal is not replayed")
	}
	return nil
}

func checkFile(dir string, n int) error {
	got, err := os.ReadFile(filepath.Join(dir, FileName(n)))
	if err != nil {
		return fmt.Errorf("file %d was reported as fsynced and is missing: %w", n, err)
	}
	want := FileContent(n)
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("file %d was reported as fsynced and differs at byte %d: %d bytes, want %d", n, at, len(got), len(want))
}

// checkLatest reads the number that the guest rewrote in place after each file.
func checkLatest(dir string, upTo int) error {
	if upTo == 0 {
		return nil
	}
	body, err := os.ReadFile(filepath.Join(dir, latestName))
	if err != nil {
		return fmt.Errorf("the file rewritten in place is missing: %w", err)
	}
	latest, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil || latest < upTo {
		return fmt.Errorf("the file rewritten in place says %q, want at least %d", body, upTo)
	}
	return nil
}

// RecoverJournal replays the ext4 journal of a raw root disk in place, as a mount after a power cut does.
func RecoverJournal(ctx context.Context, rawImage string) error {
	repaired := func(exitCode int) bool { return exitCode == 1 } // e2fsck: "file system errors corrected"
	if _, err := (command{okay: repaired, report: true}).run(ctx, "e2fsck", "-y", "-E", "journal_only", rawImage); err != nil {
		return fmt.Errorf("recover journal of %s: %w", rawImage, err)
	}
	return nil
}
