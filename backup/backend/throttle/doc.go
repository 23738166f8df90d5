// Package throttle bounds how many bytes a second go to and from a place that keeps a repository: a Bucket counts them, Limit puts one before any backend, and NewConn before a connection, which then also
// gives up when it is silent.
//
// It owns no goroutine. A Bucket is shared by all that shall keep within one rate together.
package throttle
