package inject

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// Faults say what goes wrong. The zero value is no fault at all.
type Faults struct {
	// Delay is waited before each request, and a random part of Jitter besides.
	Delay, Jitter time.Duration
	// ErrorRate is the share of requests that fail, from 0 to 1.
	ErrorRate float64
	// Errno is what failed requests get. Default EIO; ENOSPC and ENOMEM are the others that a guest can see.
	Errno syscall.Errno
	// BytesPerSecond paces reads and writes; 0 for no bound.
	BytesPerSecond uint64
	// Commands are struck. Default: all that reach a device.
	Commands []nbd.Command
	// Seed chooses among the courses that chance may take.
	Seed uint64
}

// maxWait bounds Delay and Jitter.
const maxWait = time.Hour

// maxRate bounds BytesPerSecond.
const maxRate = 1 << 50

// Validate reports the first field that makes no sense. The error wraps block.ErrInvalid.
func (f Faults) Validate() error {
	switch {
	case f.Delay < 0 || f.Delay > maxWait || f.Jitter < 0 || f.Jitter > maxWait:
		return fmt.Errorf("inject: delay %v with jitter %v is not within 0..%v: %w", f.Delay, f.Jitter, maxWait, block.ErrInvalid)
	case !(f.ErrorRate >= 0 && f.ErrorRate <= 1):
		return fmt.Errorf("inject: error rate %v is not within 0..1: %w", f.ErrorRate, block.ErrInvalid)
	case f.BytesPerSecond > maxRate:
		return fmt.Errorf("inject: rate of %d B/s is beyond 2^50: %w", f.BytesPerSecond, block.ErrInvalid)
	case f.Errno != 0 && errnoNames[f.Errno] == "":
		return fmt.Errorf("inject: errno %d is none that a client can be told: %w", f.Errno, block.ErrInvalid)
	}
	for _, c := range f.Commands {
		if !slices.Contains(commands, c) {
			return fmt.Errorf("inject: command %v does not reach a device: %w", c, block.ErrInvalid)
		}
	}
	return nil
}

// commands are those that reach a device.
var commands = []nbd.Command{nbd.CmdRead, nbd.CmdWrite, nbd.CmdFlush, nbd.CmdTrim, nbd.CmdCache, nbd.CmdWriteZeroes, nbd.CmdBlockStatus}

var errnoNames = map[syscall.Errno]string{syscall.EIO: "EIO", syscall.ENOSPC: "ENOSPC", syscall.ENOMEM: "ENOMEM"}

// Parse reads faults as a user writes them: "delay=10ms,jitter=5ms,error=0.01,errno=ENOSPC,rate=10MB/s,on=read+write,seed=7". Each key may be left
// out. The error wraps block.ErrInvalid.
func Parse(text string) (Faults, error) {
	var f Faults
	for item := range strings.SplitSeq(text, ",") {
		if item == "" {
			continue
		}
		key, value, _ := strings.Cut(item, "=")
		if err := f.set(key, value); err != nil {
			return Faults{}, fmt.Errorf("inject: %q: %w: %w", item, err, block.ErrInvalid)
		}
	}
	return f, f.Validate()
}

// set reads one value.
func (f *Faults) set(key, value string) (err error) {
	switch key {
	case "delay":
		f.Delay, err = time.ParseDuration(value)
	case "jitter":
		f.Jitter, err = time.ParseDuration(value)
	case "error":
		f.ErrorRate, err = strconv.ParseFloat(value, 64)
	case "errno":
		f.Errno, err = parseErrno(value)
	case "rate":
		var rate units.Rate
		rate, err = units.ParseRate(value)
		f.BytesPerSecond = uint64(rate)
	case "on":
		f.Commands, err = parseCommands(value)
	case "seed":
		f.Seed, err = strconv.ParseUint(value, 10, 64)
	default:
		err = errors.New("unknown key, want delay, jitter, error, errno, rate, on or seed")
	}
	return err
}

func parseErrno(name string) (syscall.Errno, error) {
	for errno, known := range errnoNames {
		if known == name {
			return errno, nil
		}
	}
	return 0, errors.New("want EIO, ENOSPC or ENOMEM")
}

func parseCommands(text string) ([]nbd.Command, error) {
	var found []nbd.Command
	for name := range strings.SplitSeq(text, "+") {
		i := slices.IndexFunc(commands, func(c nbd.Command) bool { return c.String() == name })
		if i < 0 {
			return nil, fmt.Errorf("unknown command %q, want some of %v", name, commands)
		}
		found = append(found, commands[i])
	}
	return found, nil
}

// String returns the text that Parse reads, "" for no faults.
func (f Faults) String() string {
	var items []string
	add := func(used bool, format string, value any) {
		if used {
			items = append(items, fmt.Sprintf(format, value))
		}
	}
	add(f.Delay != 0, "delay=%v", f.Delay)
	add(f.Jitter != 0, "jitter=%v", f.Jitter)
	add(f.ErrorRate != 0, "error=%v", f.ErrorRate)
	add(f.Errno != 0, "errno=%s", errnoNames[f.Errno])
	add(f.BytesPerSecond != 0, "rate=%v", units.Rate(f.BytesPerSecond))
	if len(f.Commands) > 0 {
		names := make([]string, len(f.Commands))
		for i, c := range f.Commands {
			names[i] = c.String()
		}
		items = append(items, "on="+strings.Join(names, "+"))
	}
	add(f.Seed != 0, "seed=%d", f.Seed)
	return strings.Join(items, ",")
}

// strikes reports whether a command is meant.
func (f *Faults) strikes(c nbd.Command) bool {
	return len(f.Commands) == 0 || slices.Contains(f.Commands, c)
}

// active reports whether anything of f may keep a request back or fail it.
func (f *Faults) active() bool {
	return f.Delay != 0 || f.Jitter != 0 || f.ErrorRate != 0 || f.BytesPerSecond != 0
}
