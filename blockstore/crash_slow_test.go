//go:build race

package blockstore

// crashSteps is how many operations each client runs between power cuts; the race detector makes each of them many times as slow.
const crashSteps = 40
