package lint

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// place is where a package stands in the table of floors.
type place struct {
	floor  string
	row    int // from the top
	column int // from the left
}

// above reports whether a package at p may import one at q: q stands on a lower floor, or on the same one further right.
func (p place) above(q place) bool { return p.row < q.row || p.row == q.row && p.column < q.column }

var (
	floorRow    = regexp.MustCompile(`^\| (\d|tests) \| ([^|]*) \|`)
	packageName = regexp.MustCompile("`([a-z0-9/-]+)`")
)

// readFloors parses the table under "## Floors" of docs/architecture.md.
func readFloors(t *testing.T) map[string]place {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]place{}
	row := 0
	scanLines(body, func(_ int, line string) {
		cells := floorRow.FindStringSubmatch(line)
		if cells == nil {
			return
		}
		row++
		for column, name := range packageName.FindAllStringSubmatch(cells[2], -1) {
			if _, twice := places[name[1]]; twice {
				t.Errorf("docs/architecture.md: package %s is listed twice", name[1])
			}
			places[name[1]] = place{floor: cells[1], row: row, column: column}
		}
	})
	if row != 8 {
		t.Fatalf("docs/architecture.md: the table of floors has %d rows, want seven floors and the tests", row)
	}
	return places
}

// TestFloorsListEveryPackage keeps the table equal to the tree.
func TestFloorsListEveryPackage(t *testing.T) {
	places, packages := readFloors(t), readPackages(t)
	for name := range packages {
		if _, listed := places[name]; !listed {
			t.Errorf("package %s has no floor: add it to the table in docs/architecture.md", name)
		}
	}
	for name := range places {
		if packages[name] == nil {
			t.Errorf("docs/architecture.md gives a floor to package %s, which does not exist", name)
		}
	}
}

// TestImportsPointDown is the rule that keeps each part understandable without those above it. Tests may look anywhere.
func TestImportsPointDown(t *testing.T) {
	places := readFloors(t)
	for name, p := range readPackages(t) {
		for imported, where := range p.imports {
			from, to := places[name], places[imported]
			if !from.above(to) {
				t.Errorf("%s: %s (floor %s) imports %s (floor %s): imports point down, or to the right on one floor", where, name, from.floor, imported, to.floor)
			}
		}
	}
}

// only says for some packages what of this module they may import at most; a name that ends in / means all under it.
var only = map[string][]string{
	// The second reader judges the engine: a decoder that both use would hide its own mistakes.
	"check": {"block"},
	// The protocol is tested on a byte slice and knows no engine.
	"nbd": {"block", "internal/"},
	// What the commands know of the daemon is its API.
	"api/client": {"block", "control/transfer", "internal/"},
	"block":      {},
}

// importers says for packages that serve tests and the demo which others may import them, outside of tests.
var importers = map[string][]string{
	"internal/certtest":          {},
	"internal/crashtest":         {},
	"internal/guest":             {"cmd/hv-demo"},
	"internal/lint":              {},
	"internal/nbdtest":           {},
	"internal/synth":             {"bench/nbd"},
	"internal/tlspsk/tlspsktest": {},
	"tiers/tierstest":            {},
}

// TestNarrowImports holds the packages to their lists.
func TestNarrowImports(t *testing.T) {
	packages := readPackages(t)
	for name := range maps.Keys(only) {
		for imported, where := range packages[name].imports {
			allowed := slices.ContainsFunc(only[name], func(entry string) bool {
				return imported == entry || strings.HasSuffix(entry, "/") && strings.HasPrefix(imported, entry)
			})
			if !allowed {
				t.Errorf("%s: %s may import %q at most, and imports %s", where, name, only[name], imported)
			}
		}
	}
	for name, p := range packages {
		for imported, where := range p.imports {
			if by, limited := importers[imported]; limited && !slices.Contains(by, name) {
				t.Errorf("%s: %s imports %s, which is for %q and tests", where, name, imported, by)
			}
		}
	}
}
