// Package retention decides which of a series of moments to keep: the last few, and the youngest of each of the last hours, days, weeks, months and years. Backups and scheduled snapshots are thinned by it.
//
// It knows times and nothing else, and deletes nothing itself.
package retention
