// Package units reads and writes sizes as people do: 64MiB, 20GiB, 512.
package units
