package check

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// superEncrypted is the incompat feature: what the log and the segments hold is sealed, and only hvd has the key.
const superEncrypted = 1 << 2

// docs/format/keys.md
const (
	keysName  = "keys"
	maxKeys   = 8 << 20
	keysTitle = "hyper-nixos keys %d %08x\n"
)

// sealed reports whether the store is encrypted.
func (r *run) sealed() bool { return r.super.Incompat&superEncrypted != 0 }

// checkKeyFile checks the file of an encrypted store's keys, as far as that goes without one of them.
func (r *run) checkKeyFile() error {
	b, err := readSmall(filepath.Join(r.dir, keysName), maxKeys)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.fail(keysName, 0, "the keys of the store; restore the file from a copy, or nothing of the store can be read", "no file")
		return nil
	case err != nil && asFault(err).want == "readable data":
		return err
	case err != nil:
		r.noteErr(keysName, err)
		return nil
	}
	title, body, _ := bytes.Cut(b, []byte("\n"))
	var version, sum uint32
	_, err = fmt.Sscanf(string(title)+"\n", keysTitle, &version, &sum)
	if r.expect(err == nil && version == 1, keysName, 0, "a title line of version 1", "another") {
		r.expect(crc(body) == sum, keysName, int64(len(title)+1), fmt.Sprintf("crc %08x", sum), fmt.Sprintf("%08x", crc(body)))
	}
	return nil
}

// sealedFrame compares the chunks of a sealed frame with their rows. What they hold cannot be read here.
func (c *segmentCheck) sealedFrame(at uint32, fr *frame) error {
	for i := range fr.Chunks {
		if c.row.Class == classMeta {
			continue
		}
		if err := c.r.matchChunk(c.row.ID, at, fr, &fr.Chunks[i]); err != nil {
			return err
		}
	}
	return nil
}
