package extentmap

import (
	"math/rand/v2"
	"testing"
)

func TestCacheKeepsItsBudget(t *testing.T) {
	for _, budget := range []int64{0, 100, 4 << 10, 3 << 20, 40 << 20} {
		c, rng := NewCache(budget), rand.New(rand.NewPCG(1, 2))
		for range 5000 {
			id := rng.Uint64N(400)
			data, ok := c.get(id)
			if ok && (data[0] != byte(id) || data[1] != byte(id>>8)) {
				t.Fatalf("id %d holds %x", id, data[:2])
			}
			if !ok {
				data = make([]byte, 2+rng.IntN(8<<10))
				data[0], data[1] = byte(id), byte(id>>8)
				c.add(id, data)
				if _, kept := c.get(id); kept {
					c.add(id, []byte{9, 9, 9}) // the first value stays
				}
			}
			if s := c.Stats(); s.Bytes > budget {
				t.Fatalf("%d B held, budget %d B", s.Bytes, budget)
			}
		}
		if s := c.Stats(); s.Hits+s.Misses < 5000 || (s.Hits == 0) != (budget < 100) || (s.Entries == 0) != (s.Bytes == 0) {
			t.Errorf("budget %d: %+v", budget, s)
		}
	}
}

// What is read again survives a scan of things that are read once.
func TestCacheResistsScans(t *testing.T) {
	c := NewCache(64 << 10)
	for id := uint64(1); id <= 10; id++ {
		c.add(id, make([]byte, 1<<10))
	}
	for scan := uint64(100); scan < 1000; scan++ {
		for id := uint64(1); id <= 10; id++ {
			if _, ok := c.get(id); !ok {
				t.Fatalf("id %d was evicted by a scan", id)
			}
		}
		c.add(scan, make([]byte, 1<<10))
	}
}

func TestNilCacheHoldsNothing(t *testing.T) {
	var c *Cache
	c.add(1, []byte{1})
	if _, ok := c.get(1); ok || c.Stats() != (CacheStats{}) {
		t.Error("a nil cache holds something")
	}
}
