// Package tierstest is the conformance suite that every kind of tiers.Backend runs in its own tests.
package tierstest
