package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// AddFlags defines --config and one flag for each setting. Load reads those that were given.
func AddFlags(flags *pflag.FlagSet) {
	flags.String("config", "", "config `file` (default: hvd.yaml in /etc/hyper-nixos for root, else in $XDG_CONFIG_HOME/hyper-nixos, if it is there)")
	defaults := Default()
	for _, f := range fields(&defaults) {
		value := f.text()
		if f.path == "data-dir" {
			value = "" // its text says what the default depends on
		}
		flags.Var(&textFlag{kind: f.kind(), text: value}, f.flag(), strings.TrimSuffix(f.doc, "."))
	}
}

// textFlag keeps a flag's text until Load knows the field it belongs to.
type textFlag struct{ kind, text string }

func (f *textFlag) String() string        { return f.text }
func (f *textFlag) Set(text string) error { f.text = text; return nil }
func (f *textFlag) Type() string          { return f.kind }

// Loaded is a configuration and where each setting came from.
type Loaded struct {
	Config
	// Origin says by path who set a value: "default", "config FILE", "environment HV_X" or "flag --x".
	Origin map[string]string
	// File is the config file that was read; empty when there was none.
	File string
}

// Load puts the layers together: defaults, file, environment (as os.Getenv does it), flags. flags may be nil. The result is resolved and
// validated; on a validation error it is returned as well, to be shown.
func Load(flags *pflag.FlagSet, getenv func(string) string) (*Loaded, error) {
	loaded := &Loaded{Config: Default(), Origin: map[string]string{}}
	settings := map[string]field{}
	list := fields(&loaded.Config)
	for _, f := range list {
		settings[f.path] = f
		loaded.Origin[f.path] = "default"
	}
	if err := loaded.applyFile(flags, getenv, settings); err != nil {
		return nil, err
	}
	for _, f := range list {
		if text := getenv(f.env()); text != "" {
			if err := f.set(text); err != nil {
				return nil, fmt.Errorf("environment %s: %w", f.env(), err)
			}
			loaded.Origin[f.path] = "environment " + f.env()
		}
		if flags == nil || !flags.Changed(f.flag()) {
			continue
		}
		if err := f.set(flags.Lookup(f.flag()).Value.String()); err != nil {
			return nil, fmt.Errorf("flag --%s: %w", f.flag(), err)
		}
		loaded.Origin[f.path] = "flag --" + f.flag()
	}
	if err := loaded.resolve(); err != nil {
		return nil, err
	}
	return loaded, loaded.Validate()
}

func (l *Loaded) applyFile(flags *pflag.FlagSet, getenv func(string) string, settings map[string]field) error {
	path, required := getenv("HV_CONFIG"), true
	if flags != nil && flags.Changed("config") {
		path = flags.Lookup("config").Value.String()
	}
	if path == "" {
		path, required = defaultFile(getenv), false
	}
	if path == "" {
		return nil
	}
	entries, err := readFile(path)
	if !required && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	l.File = path
	for _, e := range entries {
		f, known := settings[e.path]
		if !known {
			return fmt.Errorf("config file %s line %d: unknown key %q; `hvd config show` lists the known ones: %w", path, e.line, e.path, block.ErrInvalid)
		}
		if err := f.set(e.text); err != nil {
			return fmt.Errorf("config file %s line %d: %s: %w", path, e.line, e.path, err)
		}
		l.Origin[e.path] = "config " + path
	}
	return nil
}

// defaultFile is where the config file lies unless somebody says otherwise.
func defaultFile(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return "/etc/hyper-nixos/hvd.yaml"
	}
	dir := getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "hyper-nixos", "hvd.yaml")
}
