// Month is the part of bench/month.sh that a shell is too slow for:
//
//	month sync DIR DAY SOCKET NAME=DISK…   finds what has changed in each disk since the day before, writes it to the export NAME of the NBD server at SOCKET, and says how much it was; with - for SOCKET nothing is written
//	month logs SEED DAY BYTES              prints lines of a web server's and an application's log
//	month rows SEED DAY                    prints a day of a shop as SQL, for sqlite3
//
// sync keeps one file, DIR/books: the hash of each 4 KiB block of each disk as it stood at the end of the last day, and of each block that there ever was. A new version of it replaces the old one when all has been written and flushed, so a day that
// was interrupted is done again from its beginning, to the same end. A disk that the books do not know began as a clone of the one called base, if that is in them. Its report, a line of JSON for each disk, lies in DIR/day-N.json as well.
//
// What logs and rows print depends on their arguments alone.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

const usage = `usage: month sync DIR DAY SOCKET NAME=DISK…
       month logs SEED DAY BYTES
       month rows SEED DAY

example: month sync state 3 store/nbd.sock web1=web1.raw web2=web2.raw`

var errUsage = errors.New(usage)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, errUsage) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "month:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	out := bufio.NewWriter(os.Stdout)
	switch {
	case args[0] == "sync" && len(args) >= 5:
		day, err := strconv.Atoi(args[2])
		if err != nil || day < 0 {
			return fmt.Errorf("day %q is no number\n%w", args[2], errUsage)
		}
		report, err := syncDay(ctx, args[1], day, args[3], args[4:])
		if err != nil {
			return err
		}
		if _, err := out.Write(report); err != nil {
			return err
		}
	case args[0] == "logs" && len(args) == 4, args[0] == "rows" && len(args) == 3:
		var numbers []int64
		for _, arg := range args[1:] {
			n, err := strconv.ParseInt(arg, 10, 64)
			if err != nil || n < 0 {
				return fmt.Errorf("%q is no number\n%w", arg, errUsage)
			}
			numbers = append(numbers, n)
		}
		if args[0] == "rows" {
			writeRows(out, numbers[0], int(numbers[1]))
		} else {
			writeLogs(out, numbers[0], int(numbers[1]), numbers[2])
		}
	default:
		return errUsage
	}
	return out.Flush()
}
