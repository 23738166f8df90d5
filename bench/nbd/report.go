package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// report is all that a run of the program found out.
type report struct {
	Machine     machine   `json:"machine"`
	Data        dataCheck `json:"data"`
	Pairs       int       `json:"pairs"`
	Settings    []string  `json:"settings"`
	Notes       []string  `json:"notes"`
	Sections    []section `json:"sections"`
	TookSeconds float64   `json:"tookSeconds"`
}

func (r *report) begin(o options) {
	r.Pairs = o.pairs
	r.Settings = append(r.Settings,
		fmt.Sprintf("volume %s, working set %s from its start", o.volume.Human(), o.set.Human()),
		fmt.Sprintf("one warm-up (at most %d s), then %d pairs: the servers take turns, one runs while the others rest; before each run everything is synced and every server has used under %.0f %% of a CPU for a second",
			warmUp, o.pairs, 100*quietShare),
		"each run has a seed of its own, the same for all servers of a pair")
	if o.profile != "" {
		r.Settings = append(r.Settings, "CPU profiles of hvd were taken meanwhile")
	}
	if o.seconds != 0 {
		r.Settings = append(r.Settings, fmt.Sprintf("timed runs shortened or lengthened to %d s", o.seconds))
	}
}

// note keeps a sentence for the report, once.
func (r *report) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// write puts the report where the options say.
func (r *report) write(o options) error {
	var text strings.Builder
	r.markdown(&text)
	if o.json != "" {
		content, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(content, '\n'), 0o644); err != nil {
			return err
		}
	}
	if o.markdown != "" {
		return os.WriteFile(o.markdown, []byte(text.String()), 0o644)
	}
	_, err := os.Stdout.WriteString(text.String())
	return err
}
