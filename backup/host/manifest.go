package host

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/dir"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// manifest is one that comes from who may not delete it. What nobody can read, under a name that damage could have made, would stop every prune until it is forgotten; a prune passes over what was never a backup, and can tell that by its name.
type manifest struct {
	key        string
	repository block.UUID // zero: not known
	head       []byte
	sum        *blake3.Hasher
}

func (m *manifest) take(p []byte) {
	_, _ = m.sum.Write(p)
	m.head = append(m.head, p[:min(len(p), access.ManifestHead-len(m.head))]...)
}

func (m *manifest) check() error {
	return access.Manifest{Key: m.key, Head: m.head, Sum: m.sum.Sum(nil)}.Check(m.repository)
}

// repositoryID is what a repository is called in its objects: config says so, in plain text. Zero if there is no config yet, or one that this host cannot read.
func repositoryID(ctx context.Context, in *dir.Dir) (id block.UUID, err error) {
	o, err := in.Stat(ctx, "config")
	if errors.Is(err, block.ErrNotFound) {
		return id, nil
	}
	if err != nil || o.SizeBytes > access.LimitBytes("config") {
		return id, err
	}
	text := make([]byte, o.SizeBytes)
	if err := in.ReadAt(ctx, "config", text, 0); err != nil {
		return id, err
	}
	var config struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(text, &config) != nil {
		return id, nil
	}
	if raw, err := hex.DecodeString(strings.ReplaceAll(config.ID, "-", "")); err == nil && len(raw) == len(id) {
		id = block.UUID(raw)
	}
	return id, nil
}
