package config

import (
	"slices"
	"strings"
)

// notSettings are the variables that the programs know beside the settings.
var notSettings = []string{"HV_CONFIG", "HV_ENDPOINT", "HV_TOKEN"}

// Misspelling is an environment variable that no program knows, and the one that was probably meant.
type Misspelling struct{ Name, Meant string }

// Misspelled finds, in an environment as os.Environ returns it, the variables whose names begin like those of this system's, in capitals or not, and are nearly one of them. They have no effect, and nothing else would say so.
// What is far from all of them belongs to somebody else.
func Misspelled(environ []string) []Misspelling {
	known := slices.Clone(notSettings)
	defaults := Default()
	for _, f := range fields(&defaults) {
		known = append(known, f.env())
	}
	var found []Misspelling
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if len(name) < 4 || len(name) > 64 || !strings.HasPrefix(strings.ToUpper(name), "HV") || slices.Contains(known, name) {
			continue
		}
		nearest, least := "", len(name)
		for _, k := range known {
			if d := distance(strings.ToUpper(name), k); d < least {
				nearest, least = k, d
			}
		}
		if least <= max(2, len(name)/6) {
			found = append(found, Misspelling{name, nearest})
		}
	}
	slices.SortFunc(found, func(a, b Misspelling) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// distance is how many letters must be put in, left out or exchanged to make b of a (V. Levenshtein, 1965).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := corner
			if a[i] != b[j] {
				change++
			}
			corner = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
