package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// field is one setting, found by reflection in a Config.
type field struct {
	path  string // as in the file: log.level
	doc   string
	enum  []string
	value reflect.Value // settable
}

// fields lists the settings of c in the order of the struct.
func fields(c *Config) []field { return walk(nil, "", reflect.ValueOf(c).Elem()) }

func walk(into []field, prefix string, v reflect.Value) []field {
	for i := range v.NumField() {
		tag := v.Type().Field(i)
		path := prefix + tag.Tag.Get("yaml")
		if tag.Type.Kind() == reflect.Struct {
			into = walk(into, path+".", v.Field(i))
			continue
		}
		f := field{path: path, doc: tag.Tag.Get("doc"), value: v.Field(i)}
		if words := tag.Tag.Get("enum"); words != "" {
			f.enum = strings.Split(words, ",")
		}
		into = append(into, f)
	}
	return into
}

type enumValue struct {
	value string
	words []string
}

// enums returns the settings that allow a few words only, by path.
func enums(c *Config) map[string]enumValue {
	found := map[string]enumValue{}
	for _, f := range fields(c) {
		if f.enum != nil {
			found[f.path] = enumValue{f.value.String(), f.enum}
		}
	}
	return found
}

// place takes the path apart: the sections of the file that the setting is in, outermost first, and its key.
func (f field) place() (sections []string, key string) {
	words := strings.Split(f.path, ".")
	return words[:len(words)-1], words[len(words)-1]
}

// flag is the name of the field's command-line flag, without dashes.
func (f field) flag() string { return strings.ReplaceAll(f.path, ".", "-") }

// env is the name of the field's environment variable.
func (f field) env() string {
	return "HV_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(f.path))
}

// set reads the field from text. The error names no source; the caller does.
func (f field) set(text string) error {
	switch target := f.value.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return target.UnmarshalText([]byte(text))
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("duration %q: want a number with a unit, such as 30s or 5m: %w", text, block.ErrInvalid)
		}
		*target = d
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number: %w", text, block.ErrInvalid)
		}
		*target = n
	case *string:
		*target = text
	default:
		panic(fmt.Sprintf("config field %s has type %T, which has no text form", f.path, target))
	}
	return nil
}

// text is what set would read back.
func (f field) text() string { return fmt.Sprint(f.value.Interface()) }

// kind names the type of the field for flags and the schema: size, duration, number or string.
func (f field) kind() string {
	switch f.value.Interface().(type) {
	case units.Size:
		return "size"
	case time.Duration:
		return "duration"
	case int:
		return "number"
	}
	return "string"
}
