// Package retry asks a place that keeps a repository again when another try may help, with growing, random pauses, and gives up after some. It starts no goroutine and keeps no state.
package retry
