//go:build !race

package blockstore

// crashSteps is how many operations each client runs between power cuts.
const crashSteps = 250
