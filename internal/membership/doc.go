// Package membership tells which of several directories that hold the same thing are up to date.
//
// Each directory of a group has a label, a small file that names the directories of the group that were in sync when it was written. Whoever goes on without one of them first writes new labels, of a higher
// generation, into the others. So a directory that comes back is told to be stale by any of those that went on without it, whatever its own label says, and however its files look.
//
// What a label cannot tell is a directory that comes back alone, while all that went on without it are lost. That takes two failures.
package membership
