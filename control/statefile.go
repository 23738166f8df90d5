package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxStateFile bounds a state file, in bytes: far more than any number of attachments or tokens that makes sense.
const maxStateFile = 64 << 20

// stateHeader is what every state file begins with (docs/format/control.md).
type stateHeader struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

// readState reads a state file into target, whose first fields are the header's. A file that is not there leaves target as it is.
// Unknown fields are errors: a newer version wrote them, and dropping them would lose what they say.
func readState(path string, want stateHeader, target any) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open state file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxStateFile+1))
	if err != nil {
		return fmt.Errorf("read state file %s: %w", path, err)
	}
	if len(text) > maxStateFile {
		return &block.CorruptError{Source: path, Offset: maxStateFile, Want: "end of file", Got: "more bytes"}
	}
	var got stateHeader
	if err := json.Unmarshal(text, &got); err != nil {
		return &block.CorruptError{Source: path, Want: "JSON", Got: err.Error()}
	}
	if got.Format != want.Format {
		return &block.CorruptError{Source: path, Want: "format " + want.Format, Got: fmt.Sprintf("%q", got.Format)}
	}
	if got.Version != want.Version {
		return fmt.Errorf("%s has version %d, this program reads version %d: %w", path, got.Version, want.Version, block.ErrVersion)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(target); err != nil {
		return &block.CorruptError{Source: path, Offset: decoder.InputOffset(), Want: "known fields", Got: err.Error()}
	}
	return nil
}

// writeState replaces a state file. When it returns nil, the new content is durable; until then the old one is.
func writeState(path string, content any) error {
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state file %s: %w", path, err)
	}
	if err := replaceFile(path, append(text, '\n')); err != nil {
		return fmt.Errorf("write state file %s: %w", path, err)
	}
	return nil
}

func replaceFile(path string, text []byte) error {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
