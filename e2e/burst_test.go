package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
)

// TestBurst: after a rest a client is served at once what the limits allow in the time of --burst, and then at their rate. libnbd tells when each reply came.
func TestBurst(t *testing.T) {
	const burst = 2 // seconds
	d := startDaemon(t)
	uri := d.disk("disk", "64MiB")
	for _, c := range []struct {
		limit, command string
		size           int     // bytes of a request
		rate           float64 // requests a second that come of the limit
		together       float64 // requests that count as one: writes that hvd finds in its input buffer are applied together
	}{
		{"--read-iops=100", "read", 4 << 10, 100, 1},
		{"--write-bytes=4MiB/s", "write", 64 << 10, 64, 8},
	} {
		d.run("volume", "qos", "clear", "disk")
		d.run("volume", "qos", "set", "disk", c.limit, fmt.Sprintf("--burst=%ds", burst))
		atOnce := int(c.rate*burst) + 1 // the one that makes the debt is let in, too
		count := atOnce + int(c.rate)
		for try := 1; ; try++ {
			text := libnbd(t, "burst.py", "URI="+uri, "COMMAND="+c.command, fmt.Sprint("SIZE=", c.size), fmt.Sprint("COUNT=", count), fmt.Sprint("REST=", burst+0.5))
			var replied []float64
			if err := json.Unmarshal([]byte(text), &replied); err != nil || len(replied) != count {
				t.Fatalf("%d replies of %d, %v", len(replied), count, err)
			}
			// This holds on any machine: hvd's time passed within the client's.
			for k, at := range replied {
				if most := c.rate*(burst+at) + c.together; float64(k+1) > most+0.5 {
					t.Fatalf("%s: %d replies in %.3f s, allowed are %.1f", c.limit, k+1, at, most)
				}
			}
			first, last := replied[atOnce-1], replied[count-1]
			t.Logf("%s: %d requests in %.3f s, all %d in %.3f s", c.limit, atOnce, first, count, last)
			// Without a burst the first of these would take two seconds; the rest takes one.
			if first < burst/2.0 && last < 1.3 {
				break
			}
			if try == limitTries {
				t.Errorf("%s, burst of %d s: %d requests took %.3f s, all %d took %.3f s", c.limit, burst, atOnce, first, count, last)
				break
			}
		}
	}
}
