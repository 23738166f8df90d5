package throttle

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
)

func TestLimitedBackend(t *testing.T) {
	m := new(backendtest.Memory)
	backendtest.Run(t, func(*testing.T) backend.Backend { return Limit(m, NewBucket(1<<30)) })
}

// However many use a bucket, and in whichever pieces, together they take as long as its rate asks for.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Limit(new(backendtest.Memory), NewBucket(1<<20))
		began := time.Now()
		var all sync.WaitGroup
		for _, key := range []string{"a", "b", "c", "d"} {
			all.Go(func() {
				if err := b.Create(t.Context(), key, make([]byte, 2<<20)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if err := b.ReadAt(t.Context(), "a", make([]byte, 2<<20), 0); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 9800*time.Millisecond || took > 10200*time.Millisecond {
			t.Errorf("10 MiB at 1 MiB/s take %v", took)
		}
	})
}

// A rate that is changed counts for what is taken from then on, and none is none.
func TestChangedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := NewBucket(1 << 20)
		took := func(n int) time.Duration {
			began := time.Now()
			if err := bucket.takeAll(t.Context(), n); err != nil {
				t.Error(err)
			}
			return time.Since(began)
		}
		if d := took(4 << 20); d < 3800*time.Millisecond || d > 4100*time.Millisecond {
			t.Errorf("4 MiB at 1 MiB/s take %v", d)
		}
		bucket.SetRate(8 << 20)
		if d := took(8 << 20); d < 900*time.Millisecond || d > 1200*time.Millisecond {
			t.Errorf("8 MiB at 8 MiB/s take %v", d)
		}
		bucket.SetRate(0)
		if d := took(1 << 30); d != 0 {
			t.Errorf("without a rate 1 GiB takes %v", d)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := new(backendtest.Memory)
		b := Limit(m, NewBucket(1000))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Create(ctx, "a", make([]byte, 1<<20)); !errors.Is(err, context.DeadlineExceeded) || m.Bytes("") != 0 {
			t.Errorf("after a cancel: %v, %d B", err, m.Bytes(""))
		}
	})
}
