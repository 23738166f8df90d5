package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Folder is where policies are: NAME.json, NAME.state and NAME.lock of each, for their owner alone.
type Folder string

const maxFile = 8 << 20 // bytes

// file is what a file of a folder is: a header, and its content.
type file struct {
	Format  string          `json:"format"`
	Version int             `json:"version"`
	Content json.RawMessage `json:"content"`
}

const (
	policyFormat = "hyper-nixos backup policy"
	stateFormat  = "hyper-nixos backup policy state"
)

// Names lists the policies, in order.
func (f Folder) Names() (names []string, err error) {
	entries, err := os.ReadDir(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && CheckName(name) == nil {
			names = append(names, name)
		}
	}
	return names, err
}

// Load reads a policy and what came of it. block.ErrNotFound if there is none.
func (f Folder) Load(name string) (p *Policy, s State, err error) {
	if err := CheckName(name); err != nil {
		return nil, s, err
	}
	p = new(Policy)
	version, err := f.read(name+".json", policyFormat, newestVersion, p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s, fmt.Errorf("policy %s in %s: %w", name, f, block.ErrNotFound)
	} else if err != nil {
		return nil, s, err
	}
	if version < p.version() { // who wrote it did not know what is in it
		return nil, s, &block.CorruptError{Source: f.path(name + ".json"), Want: fmt.Sprintf("version %d, for what it says", p.version()), Got: strconv.Itoa(version)}
	}
	if p.Name != name {
		return nil, s, &block.CorruptError{Source: f.path(name + ".json"), Want: "policy " + name, Got: p.Name}
	}
	if err := p.Validate(); err != nil {
		return nil, s, err
	}
	if _, err := f.read(name+".state", stateFormat, firstVersion, &s); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, s, err
	}
	if s.Created.IsZero() { // the file is lost
		info, err := os.Stat(f.path(name + ".json"))
		if err != nil {
			return nil, s, err
		}
		s.Created = info.ModTime().UTC()
	}
	return p, s, nil
}

// Save makes or replaces a policy. It is durable when this returns.
func (f Folder) Save(p *Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	return f.write(p.Name+".json", policyFormat, p.version(), p)
}

// SaveState notes what came of a policy.
func (f Folder) SaveState(name string, s State) error {
	return f.write(name+".state", stateFormat, firstVersion, s)
}

// Delete removes a policy. Its backups stay.
func (f Folder) Delete(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := os.Remove(f.path(name + ".json")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("policy %s in %s: %w", name, f, block.ErrNotFound)
	} else if err != nil {
		return err
	}
	for _, suffix := range []string{".state", ".lock"} {
		if err := os.Remove(f.path(name + suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Lock keeps others from running a policy until unlock is called, or this process ends. block.ErrInUse if somebody runs it.
func (f Folder) Lock(name string) (unlock func() error, err error) {
	lock, err := os.OpenFile(f.path(name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("policy %s runs already: %w", name, block.ErrInUse)
		}
		return nil, errors.Join(err, lock.Close())
	}
	return lock.Close, nil
}

func (f Folder) path(name string) string { return filepath.Join(string(f), name) }

// read reads a file whose version is not above newest, and returns that.
func (f Folder) read(name, format string, newest int, into any) (version int, err error) {
	path := f.path(name)
	r, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxFile))
	if err != nil {
		return 0, err
	}
	corrupt := func(want, got string) error {
		return &block.CorruptError{Source: path, Want: want, Got: got}
	}
	var whole file
	if err := json.Unmarshal(text, &whole); err != nil {
		return 0, corrupt("JSON", err.Error())
	}
	if whole.Format != format {
		return 0, corrupt("format "+format, whole.Format)
	}
	if whole.Version < firstVersion || whole.Version > newest {
		return 0, fmt.Errorf("%s has version %d, this program reads versions %d to %d: %w", path, whole.Version, firstVersion, newest, block.ErrVersion)
	}
	d := json.NewDecoder(bytes.NewReader(whole.Content))
	d.DisallowUnknownFields() // a newer version may mean something by them
	if err := d.Decode(into); err != nil {
		return 0, corrupt("known fields", err.Error())
	}
	return whole.Version, nil
}

func (f Folder) write(name, format string, version int, content any) error {
	inner, err := json.Marshal(content)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(file{format, version, inner}, "", "  ")
	if err != nil {
		return err
	}
	temporary, err := os.CreateTemp(string(f), "."+name+".*") // for the owner alone
	if err != nil {
		return err
	}
	_, err = temporary.Write(append(text, '\n'))
	if err == nil {
		err = temporary.Sync()
	}
	if err = errors.Join(err, temporary.Close()); err == nil {
		err = os.Rename(temporary.Name(), f.path(name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	d, err := os.Open(string(f))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
