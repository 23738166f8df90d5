package inject

import (
	"errors"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		text, back string
		want       Faults
	}{
		{"", "", Faults{}},
		{"delay=10ms", "delay=10ms", Faults{Delay: 10 * time.Millisecond}},
		{"delay=1s,jitter=5ms,error=0.01,errno=ENOSPC,rate=10MB/s,on=read+write,seed=7", "delay=1s,jitter=5ms,error=0.01,errno=ENOSPC,rate=10MB/s,on=read+write,seed=7", Faults{
			Delay: time.Second, Jitter: 5 * time.Millisecond, ErrorRate: 0.01, Errno: syscall.ENOSPC, BytesPerSecond: 10e6,
			Commands: []nbd.Command{nbd.CmdRead, nbd.CmdWrite}, Seed: 7,
		}},
		{"rate=1MiB,", "rate=1MiB/s", Faults{BytesPerSecond: 1 << 20}},
	} {
		got, err := Parse(tc.text)
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q: %+v, %v", tc.text, got, err)
		}
		if got.String() != tc.back {
			t.Errorf("%q comes back as %q", tc.text, got)
		}
	}
	for _, text := range []string{
		"delay", "delay=x", "delay=-1s", "delay=2h", "jitter=2h", "error=1.1", "error=-1", "error=NaN", "errno=EPERM", "rate=-1", "rate=9999999PiB",
		"on=disc", "on=", "on=reed", "seed=-1", "other=1", "=",
	} {
		if f, err := Parse(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, f, err)
		}
	}
}
