package host

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/dir"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/remote"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// pieceBytes is how much of an object is in memory at once.
const pieceBytes = 256 << 10

// put stores an object, and answers when it is durable.
func (c *call) put() error {
	sizeBytes := c.r.ContentLength
	switch {
	case c.r.Header.Get("If-None-Match") != "*":
		return refuse(http.StatusPreconditionRequired, "objects are never replaced: want If-None-Match: *")
	case sizeBytes < 0:
		return refuse(http.StatusLengthRequired, "an object of unknown length: want Content-Length")
	case sizeBytes > access.LimitBytes(c.key):
		return refuse(http.StatusRequestEntityTooLarge, "object %s of %d B, at most %d B", c.key, sizeBytes, access.LimitBytes(c.key))
	}
	if c.rights.MayStat(c.key) { // who comes again learns that it is there, also when there is no room, or it could not be made any more
		if _, err := c.in.Stat(c.r.Context(), c.key); !errors.Is(err, block.ErrNotFound) {
			return cmp.Or(err, block.ErrExists)
		}
	}
	made, err := hasConfig(c.r.Context(), c.in)
	if err != nil {
		return err
	}
	if !c.rights.MayMake(c.key, made) {
		return c.forbid("to make %s", c.key)
	}
	if err := c.h.room(c.name, sizeBytes); err != nil {
		return err
	}
	settle, err := c.admit(uint64(sizeBytes))
	if err != nil {
		return err
	}
	defer settle()
	if err := c.store(sizeBytes); err != nil {
		return err
	}
	c.count(func(s *Stats) { s.Stored++; s.StoredBytes += uint64(sizeBytes) })
	c.reply(http.StatusCreated, struct{}{})
	return nil
}

// store takes the body into an object.
func (c *call) store(sizeBytes int64) error {
	from := &arrival{from: &body{from: c.r.Body, connection: c.connection, stall: c.h.o.Stall, until: c.until(sizeBytes), left: sizeBytes}, left: sizeBytes, gate: c.h.ledger.gate(c.name)}
	if access.IsManifest(c.key) && !c.rights.Has(access.Delete) {
		id, err := repositoryID(c.r.Context(), c.in)
		if err != nil {
			return err
		}
		from.manifest = &manifest{key: c.key, repository: id, sum: blake3.New()}
	}
	owner := ""
	if len(c.h.o.PeerQuotas) > 0 {
		owner = c.account
	}
	defer from.leave()
	err := from.enterEmpty()
	if err == nil {
		err = c.in.CreateFrom(c.r.Context(), c.key, sizeBytes, owner, from)
	}
	if err == nil {
		c.h.ledger.add(c.name, owner, sizeBytes)
	}
	return err
}

// arrival is the body of an object. With its last byte the gate of the repository is entered, so that the object gets its name before or after a count. A manifest is looked at then.
type arrival struct {
	from     io.Reader
	left     int64
	gate     *sync.RWMutex
	in       bool
	manifest *manifest // nil: it is none, or is not looked at
}

// Read implements io.Reader.
func (a *arrival) Read(p []byte) (int, error) {
	n, err := a.from.Read(p[:min(int64(len(p)), a.left)])
	if a.manifest != nil {
		a.manifest.take(p[:n])
	}
	if a.left -= int64(n); a.left > 0 || a.in {
		return n, err
	}
	if err := a.enter(); err != nil {
		return n, err
	}
	return n, err
}

// enterEmpty is for an object of no bytes, of which none is the last.
func (a *arrival) enterEmpty() error {
	if a.left > 0 {
		return nil
	}
	return a.enter()
}

func (a *arrival) enter() error {
	if a.manifest != nil {
		if err := a.manifest.check(); err != nil {
			return err
		}
	}
	a.gate.RLock()
	a.in = true
	return nil
}

func (a *arrival) leave() {
	if a.in {
		a.gate.RUnlock()
	}
}

// room returns block.ErrNoSpace if so many bytes would take of what is left free.
func (h *Host) room(name string, sizeBytes int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(h.path(name), &s); err != nil {
		return fmt.Errorf("free space for repository %s: %w", name, err)
	}
	if free := s.Bavail * uint64(s.Bsize); free < h.o.ReserveBytes+uint64(sizeBytes) {
		return block.ErrNoSpace
	}
	return nil
}

// get sends an object, or a range of it.
func (c *call) get() error {
	if !c.rights.MayStat(c.key) {
		return c.forbid("to read %s", c.key)
	}
	o, err := c.in.Stat(c.r.Context(), c.key)
	if err != nil {
		return err
	}
	off, n, status := int64(0), o.SizeBytes, http.StatusOK
	if asked := c.r.Header.Get("Range"); asked != "" {
		first, last, ok := parseRange(asked)
		if !ok {
			return refuse(http.StatusBadRequest, "range %.100q: want bytes=FIRST-LAST", asked)
		}
		if last >= o.SizeBytes {
			return refuse(http.StatusRequestedRangeNotSatisfiable, "object %s of repository %s has %d B, and bytes to %d were asked for", c.key, c.name, o.SizeBytes, last)
		}
		off, n, status = first, last-first+1, http.StatusPartialContent
	}
	if !c.rights.MayRead(c.key) {
		part, err := isPackPart(c.r.Context(), c.in, o, off, n)
		if err == nil && !part {
			err = c.forbid("to read bytes %d to %d of %s", off, off+n-1, c.key)
		}
		if err != nil {
			return err
		}
	}
	if status == http.StatusPartialContent {
		c.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, o.SizeBytes))
	}
	c.w.Header().Set("Content-Type", "application/octet-stream")
	c.w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	c.w.WriteHeader(status)
	to := &writer{to: c.w, connection: c.connection, stall: c.h.o.Stall, until: c.until(n)}
	if err := c.h.pass(c.r.Context(), c.in, to, c.key, off, n); err != nil {
		if !errors.Is(err, errTaken) {
			c.failed(err)
		}
		panic(http.ErrAbortHandler) // the status is out: only a cut says that this is not all
	}
	c.count(func(s *Stats) { s.SentBytes += uint64(n) })
	return nil
}

// errTaken means that a client did not take what it had asked for.
var errTaken = errors.New("the client does not take it")

// pass writes n bytes of an object from off.
func (h *Host) pass(ctx context.Context, from *dir.Dir, to io.Writer, key string, off, n int64) error {
	p := make([]byte, min(n, pieceBytes))
	for ; n > 0; n -= int64(len(p)) {
		p = p[:min(n, int64(len(p)))]
		if err := from.ReadAt(ctx, key, p, off); err != nil {
			return err
		}
		if _, err := to.Write(p); err != nil {
			return fmt.Errorf("%w: %w", errTaken, err)
		}
		off += int64(len(p))
	}
	return nil
}

// parseRange reads bytes=FIRST-LAST, the one form of a range that is taken (RFC 9110, 14.1.2).
func parseRange(text string) (first, last int64, ok bool) {
	spec, ok := strings.CutPrefix(text, "bytes=")
	a, b, both := strings.Cut(spec, "-")
	x, err := strconv.ParseUint(a, 10, 62)
	y, err2 := strconv.ParseUint(b, 10, 62)
	return int64(x), int64(y), ok && both && err == nil && err2 == nil && x <= y
}

// isPackPart reports whether a range of an object is a part of what a pack says of itself: its header, with as much behind it as a header may have, or its directory and trailer.
func isPackPart(ctx context.Context, in *dir.Dir, o backend.Object, off, n int64) (bool, error) {
	switch {
	case !access.IsPack(o.Key):
		return false, nil
	case off+n <= pack.HeaderSize, off >= o.SizeBytes-pack.TrailerSize:
		return true, nil
	case o.SizeBytes < pack.TrailerSize || o.SizeBytes > pack.MaxSize:
		return false, nil
	}
	tail := make([]byte, pack.TrailerSize)
	if err := in.ReadAt(ctx, o.Key, tail, o.SizeBytes-pack.TrailerSize); err != nil {
		return false, err
	}
	t, err := pack.DecodeTrailer(tail, o.SizeBytes)
	if err != nil {
		return false, nil // it is no pack
	}
	return off >= o.SizeBytes-pack.TrailerSize-int64(t.DirectoryLen), nil
}

// stat tells of an object, and with ?hash=sha-256 its SHA-256.
func (c *call) stat() error {
	if !c.rights.MayStat(c.key) {
		return c.forbid("to ask about %s", c.key)
	}
	o, err := c.in.Stat(c.r.Context(), c.key)
	if err != nil {
		return err
	}
	told := remote.Object{Key: o.Key, SizeBytes: o.SizeBytes, Created: o.Created.UTC()}
	switch hash := c.r.URL.Query().Get("hash"); hash {
	case "":
	case remote.HashSHA256:
		sum := sha256.New()
		if err := c.h.pass(c.r.Context(), c.in, sum, c.key, 0, o.SizeBytes); err != nil {
			return err
		}
		told.SHA256 = hex.EncodeToString(sum.Sum(nil))
	default:
		return refuse(http.StatusBadRequest, "hash %.40q: want %s", hash, remote.HashSHA256)
	}
	c.reply(http.StatusOK, told)
	return nil
}

// errFull ends a listing whose page is full.
var errFull = errors.New("the page is full")

// list lists objects.
func (c *call) list() error {
	prefix, after := c.r.URL.Query().Get("prefix"), c.r.URL.Query().Get("after")
	for _, key := range []string{strings.TrimSuffix(prefix, "/"), after} {
		if key != "" || prefix == "/" {
			if err := backend.CheckKey(key); err != nil {
				return err
			}
		}
	}
	if !c.rights.MayList(prefix) {
		return c.forbid("to list %q", prefix)
	}
	page, err := c.h.page(c.r.Context(), c.in, prefix, after)
	if err != nil {
		return err
	}
	c.reply(http.StatusOK, page)
	return nil
}

// page lists objects, as many as an answer may have. Few are made at once: a folder with very many costs a CPU for a while.
func (h *Host) page(ctx context.Context, in *dir.Dir, prefix, after string) (page remote.Page, err error) {
	select {
	case h.listing <- struct{}{}:
		defer func() { <-h.listing }()
	case <-ctx.Done():
		return page, ctx.Err()
	}
	page.Objects = []remote.Object{}
	err = in.ListAfter(ctx, prefix, after, func(o backend.Object) error {
		if len(page.Objects) == remote.MaxPage {
			page.More = true
			return errFull
		}
		page.Objects = append(page.Objects, remote.Object{Key: o.Key, SizeBytes: o.SizeBytes, Created: o.Created.UTC()})
		return nil
	})
	if errors.Is(err, errFull) {
		err = nil
	}
	return page, err
}

// delete deletes an object, unless it is held.
func (c *call) delete() error {
	if !c.rights.Has(access.Delete) {
		return c.forbid("to delete %s", c.key)
	}
	if err := c.h.remove(c.r.Context(), c.in, c.name, c.key); err != nil {
		return err
	}
	c.count(func(s *Stats) { s.Deleted++ })
	c.reply(http.StatusOK, struct{}{})
	return nil
}

// remove deletes an object, unless it is held. To look at its age and to delete it are one step: nothing but this removes objects, so it is of that age still.
func (h *Host) remove(ctx context.Context, in *dir.Dir, name, key string) error {
	h.deleting.Lock()
	defer h.deleting.Unlock()
	o, err := in.Stat(ctx, key)
	if err != nil {
		return err
	}
	if until := o.Created.Add(h.o.Keep); access.Held(key) && h.o.Now().Before(until) {
		return refuse(http.StatusConflict, "object %s of repository %s is kept until %s, whoever asks (its repository.keep)", key, name, until.UTC().Truncate(time.Second).Format(time.RFC3339))
	}
	owner := ""
	if len(h.o.PeerQuotas) > 0 {
		if owner, err = in.Owner(key); err != nil {
			return err
		}
	}
	gate := h.ledger.gate(name)
	gate.RLock()
	defer gate.RUnlock()
	if err := in.Delete(ctx, key); err != nil {
		return err
	}
	h.ledger.add(name, owner, -o.SizeBytes)
	return nil
}
