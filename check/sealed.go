package check

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// superEncrypted is the incompat feature: what the log and the segments hold is sealed.
const superEncrypted = 1 << 2

// docs/format/keys.md
const (
	keysName  = "keys"
	maxKeys   = 8 << 20
	keysTitle = "hyper-nixos keys %d %08x\n"
)

// sealed reports whether the store is encrypted.
func (r *run) sealed() bool { return r.super.Incompat&superEncrypted != 0 }

// checkKeyFile checks the file of an encrypted store's keys, and opens it if somebody can. The error is ErrWrongKey if nobody can who should.
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
	body, err := keysFileBody(b)
	if err == nil && r.opts.Unwrap != nil {
		r.ring, err = openRing(body, r.super.StoreID, r.opts.Unwrap)
		if errors.Is(err, ErrWrongKey) {
			return err
		}
	}
	if err != nil {
		r.noteErr(keysName, err)
		return nil
	}
	if r.ring != nil {
		r.checkDomainOf(r.ring.domain, keysName)
	}
	return nil
}

// keysFileBody checks the title of the file of keys and returns what is behind it.
func keysFileBody(b []byte) ([]byte, error) {
	title, body, _ := bytes.Cut(b, []byte("\n"))
	var version, sum uint32
	if _, err := fmt.Sscanf(string(title)+"\n", keysTitle, &version, &sum); err != nil || version != 1 {
		return nil, faultf(0, "a title line of version 1", "another")
	}
	if crc(body) != sum {
		return nil, faultf(int64(len(title)+1), fmt.Sprintf("crc %08x", sum), "%08x", crc(body))
	}
	return body, nil
}

// sealedFrame compares the chunks of a sealed frame with their rows. What they hold cannot be read without a key.
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
