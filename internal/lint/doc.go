// Package lint holds the rules of the house that a compiler does not check, as tests: imports point down only, as the table in
// docs/architecture.md says; files are formatted, of a readable length, and free of leftovers.
//
// It reads the module's files and nothing else. `make lint` runs it together with vet and staticcheck. A rule that is wrong is
// changed here; there is no way to switch it off for a line.
package lint
