// Package units reads and writes sizes as people do: 64MiB, 20G, 500GB, 512.
package units
