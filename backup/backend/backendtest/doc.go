// Package backendtest has the tests that every backend of a repository passes.
package backendtest
