// Package block holds the nouns that every other package speaks of: sizes, identities, ranges and errors.
//
// It owns no state and does no I/O. Anything that two floors of the house must agree on, and nothing else, lives here.
package block
