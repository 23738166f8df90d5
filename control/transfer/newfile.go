package transfer

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// NewFile makes a sparse file of so many bytes beside path, has it filled, and gives it the name path when it is complete and on disk. What a process that was killed has left there is begun anew; what another one is writing
// at this moment is refused (block.ErrInUse). After an error nothing is left of it.
func NewFile(path string, sizeBytes uint64, fill func(*os.File) error) error {
	partial := path + ".partial"
	f, err := lockedFile(partial)
	if err != nil {
		return err
	}
	if err = f.Truncate(0); err == nil {
		err = f.Truncate(int64(sizeBytes))
	}
	if err == nil {
		err = fill(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(partial, path) // before the lock goes with the file
	}
	if err != nil {
		err = errors.Join(err, os.Remove(partial))
	}
	return errors.Join(err, f.Close())
}

// lockedFile opens, or makes, a file that no other process has. What was in it stays.
func lockedFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK) { // other errors are of file systems without locks
			return nil, errors.Join(fmt.Errorf("another process writes %s; wait until it has ended, or give another name: %w", path, block.ErrInUse), f.Close())
		}
		opened, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(opened, there) {
			return f, nil
		}
		if err := f.Close(); err != nil { // between opening and locking it got its name, or was removed, by another process
			return nil, err
		}
	}
}
