// Package gauge measures what backups cost here: how fast data of the user is cut, hashed, compressed, sealed and opened again on this machine, how fast the place of a repository takes and gives objects, and how fast a backup comes back.
//
// Data is sampled, by regions from all over the source. Objects are stored under the prefix bench/, which no repository reads, hold random bytes, and are deleted before Storage returns, also after errors and when its context ends; what a process that was
// killed left is deleted by the next one. Nothing else is changed. All goroutines have ended when a function returns.
package gauge
