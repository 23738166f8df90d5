// Package backendtest has the suite that every backend of a repository passes, a backend in memory whose objects a test makes older, and one that fails on purpose.
package backendtest
