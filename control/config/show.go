package config

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Show writes the effective configuration as a config file, each setting under its description, with the source of those that are not
// defaults.
func (l *Loaded) Show(w io.Writer) error {
	var out strings.Builder
	var open []string // the sections that the last setting was in
	for _, f := range fields(&l.Config) {
		sections, key := f.place()
		for depth, section := range sections {
			if depth < len(open) && open[depth] == section {
				continue
			}
			open = open[:depth]
			if depth == 0 {
				out.WriteByte('\n')
			}
			fmt.Fprintf(&out, "%s%s:\n", strings.Repeat("  ", depth), section)
			open = append(open, section)
		}
		open = open[:len(sections)]
		indent := strings.Repeat("  ", len(sections))
		fmt.Fprintf(&out, "%s# %s\n%s%s: %s", indent, f.doc, indent, key, f.yaml())
		if origin := l.Origin[f.path]; origin != "default" {
			fmt.Fprintf(&out, " # from %s", origin)
		}
		out.WriteByte('\n')
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// yaml is the value in a form that needs no more quoting.
func (f field) yaml() string {
	if f.kind() == "string" {
		return strconv.Quote(f.text())
	}
	return f.text()
}

// Values returns the settings by path, in their text form: for support bundles and JSON output. There is no secret among them.
func (l *Loaded) Values() map[string]string {
	values := map[string]string{}
	for _, f := range fields(&l.Config) {
		values[f.path] = f.text()
	}
	return values
}

// Schema writes the JSON Schema (draft 2020-12) of the config file.
func Schema(w io.Writer) error {
	defaults := Default()
	root := object()
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "hvd configuration"
	for _, f := range fields(&defaults) {
		parent := root
		sections, key := f.place()
		for _, section := range sections {
			properties := parent["properties"].(map[string]any)
			if properties[section] == nil {
				properties[section] = object()
			}
			parent = properties[section].(map[string]any)
		}
		parent["properties"].(map[string]any)[key] = f.schema()
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(root)
}

func object() map[string]any {
	return map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}
}

func (f field) schema() map[string]any {
	s := map[string]any{"type": "string", "description": f.doc}
	if f.path != "data-dir" { // depends on the user
		s["default"] = f.text()
	}
	switch f.kind() {
	case "size":
		s["type"] = []string{"string", "integer"}
		s["pattern"] = `^[0-9]+(\.[0-9]+)?([KMGTPE]iB|B)?$`
	case "duration":
		s["pattern"] = `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`
	case "number":
		s["type"] = "integer"
		s["default"] = f.value.Int()
	}
	if f.enum != nil {
		s["enum"] = f.enum
	}
	return s
}
