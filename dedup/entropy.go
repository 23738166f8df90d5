package dedup

// The probe looks at probeSamples runs of probeRun bytes, spread evenly.
const (
	probeSamples = 16
	probeRun     = 32
	probeBytes   = probeSamples * probeRun
	// uniformPairs is the mean of Σ count² over the 256 byte values when probeBytes uniform bytes are counted: n + n(n-1)/256. Its standard
	// deviation is about 45.
	uniformPairs = probeBytes + probeBytes*(probeBytes-1)/256
	// probeLimit is where "uniform" ends: 12 % above the mean. On real data (docs/format/frame.md) it skips compression of nearly all compressed
	// and encrypted bytes, and of almost nothing that S2 would have made smaller.
	probeLimit = uniformPairs * 112 / 100
)

// Incompressible reports whether a compressor would waste its time on p: whether the byte values in a sample of it are as evenly spread as
// those of random, encrypted or compressed data. It is a guess in both directions and costs about half a microsecond; p shorter than the sample is
// never called incompressible.
func Incompressible(p []byte) bool {
	if len(p) < 2*probeBytes {
		return false
	}
	var count [2][256]uint16 // two tables: equal neighbours do not wait for each other's store
	step := (len(p) - probeRun) / (probeSamples - 1)
	for i := range probeSamples {
		run := p[i*step:][:probeRun:probeRun]
		for j := 0; j < probeRun; j += 2 {
			count[0][run[j]]++
			count[1][run[j+1]]++
		}
	}
	pairs := 0
	for v := range 256 {
		n := int(count[0][v]) + int(count[1][v])
		pairs += n * n
	}
	return pairs <= probeLimit
}
