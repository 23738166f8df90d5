// Package policy keeps what shall be backed up by itself: what, where to, how often, and what to keep. A folder has a file for each policy, and one with what came of it (docs/hv-backup.md has the fields).
//
// The file of a policy has the oldest version whose programs know all that it says, so that an older one refuses what it would do in part.
//
// It decides when something is due, and does nothing itself: cmd/hv-backup does, called by a timer.
package policy
