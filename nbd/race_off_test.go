//go:build !race

package nbd

// raceEnabled reports the race detector, under which pools forget on purpose.
const raceEnabled = false
