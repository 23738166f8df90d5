package api

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control"
)

// lostChunkLine is one line of GET /v1/lost-chunks: a chunk that cannot be read, or, as the last line, whether there are more.
type lostChunkLine struct {
	ID     uint64           `json:"id"`
	Length uint32           `json:"length"` // bytes
	Places []lostChunkPlace `json:"places"`
}

type lostChunkPlace struct {
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot,omitempty"`
	Offset   uint64 `json:"offset"` // of the chunk's first byte
}

type lostChunksEnd struct {
	End *lostChunksMore `json:"end"`
}

type lostChunksMore struct {
	More bool `json:"more"`
}

// The body of POST /v1/lost-chunks: for each chunk its id (8), how many bytes follow (4), both little-endian, and these. They are part of the interface.
const (
	chunkHead   = 12
	maxChunkRaw = 1 << 22 // bytes of one chunk
	maxHealBody = 16 << 20
	maxHealed   = 1 << 14 // chunks of one body
)

// lostChunks serves GET /v1/lost-chunks?after=ID: a JSON object a line for each chunk that cannot be read, and at the end whether others follow. One is told at a time, as it reads all maps.
func lostChunks(c *control.Control, slots places) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		leave, err := enterRepair(r, slots)
		if err != nil {
			fail(w, err)
			return
		}
		defer leave()
		body := &lateBody{w: timely{w}, contentType: "application/x-ndjson"}
		body.finish(tellLostChunks(c, r, body))
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // the connection may have a next request
	}
}

func enterRepair(r *http.Request, slots places) (leave func(), err error) {
	if err := allow(r.Context(), control.ScopeOperate); err != nil {
		return nil, err
	}
	return slots.take("another repair of lost chunks is under way")
}

func tellLostChunks(c *control.Control, r *http.Request, body *lateBody) error {
	after := uint64(0)
	if text := r.URL.Query().Get("after"); text != "" {
		if err := json.Unmarshal([]byte(text), &after); err != nil {
			return fmt.Errorf("after=%q: want the id of a chunk: %w", text, block.ErrInvalid)
		}
	}
	lost, more, err := c.LostChunks(r.Context(), block.ChunkID(after))
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(body, 32<<10)
	encoder := json.NewEncoder(out)
	for _, l := range lost {
		line := lostChunkLine{ID: uint64(l.ID), Length: l.Length, Places: []lostChunkPlace{}}
		for _, p := range l.Places {
			line.Places = append(line.Places, lostChunkPlace(p))
		}
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	if err := encoder.Encode(lostChunksEnd{&lostChunksMore{more}}); err != nil {
		return err
	}
	return out.Flush()
}

// healChunks serves POST /v1/lost-chunks: bytes that may be those of lost chunks. The reply names the chunks that are whole now. Bytes that are not those of a lost chunk are refused without an error.
func healChunks(c *control.Control, slots places) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		leave, err := enterRepair(r, slots)
		if err != nil {
			fail(w, err)
			return
		}
		defer leave()
		all, err := readChunks(http.MaxBytesReader(w, r.Body, maxHealBody))
		if err != nil {
			fail(w, err)
			return
		}
		healed, err := c.Heal(r.Context(), all)
		if err != nil {
			fail(w, err)
			return
		}
		ids := make([]uint64, len(healed))
		for i := range healed {
			ids[i] = uint64(healed[i])
		}
		reply(w, http.StatusOK, map[string]any{"healed": ids})
	}
}

// readChunks reads a body. Every length is checked before it is allocated.
func readChunks(r io.Reader) (all []blockstore.ChunkBytes, err error) {
	head := make([]byte, chunkHead)
	for {
		if _, err := io.ReadFull(r, head); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("a body that ends in the middle of a chunk's id and length: %v: %w", err, block.ErrInvalid)
		}
		n := binary.LittleEndian.Uint32(head[8:])
		if n > maxChunkRaw || len(all) == maxHealed {
			return nil, fmt.Errorf("chunk of %d B, the %d-th of a body: at most %d B and %d chunks: %w", n, len(all)+1, maxChunkRaw, maxHealed, block.ErrInvalid)
		}
		raw := make([]byte, n)
		if _, err := io.ReadFull(r, raw); err != nil {
			return nil, fmt.Errorf("a body of at most %d B that ends in the middle of a chunk of %d B: %v: %w", maxHealBody, n, err, block.ErrInvalid)
		}
		all = append(all, blockstore.ChunkBytes{ID: block.ChunkID(binary.LittleEndian.Uint64(head)), Raw: raw})
	}
}
