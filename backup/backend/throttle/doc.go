// Package throttle bounds how many bytes a second go to and from a place that keeps a repository: a Bucket counts them, and Limit puts one before any backend.
//
// It owns no goroutine. A Bucket is shared by all that shall keep within one rate together.
package throttle
