package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// LostChunk is a chunk of hvd's store that cannot be read, and where its bytes lay, one after the other.
type LostChunk struct {
	ID     uint64       `json:"id"`
	Length uint32       `json:"length"` // bytes
	Places []ChunkPlace `json:"places"`
}

// ChunkPlace is a place of a chunk, in bytes.
type ChunkPlace struct {
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot"` // empty: the volume as it is
	Offset   uint64 `json:"offset"`
}

// ChunkBytes are what may be the bytes of a lost chunk.
type ChunkBytes struct {
	ID  uint64
	Raw []byte
}

// LostChunks lists chunks that cannot be read, by their ids from after on, and whether there are more. An answer that was cut off is io.ErrUnexpectedEOF.
func (c *Client) LostChunks(ctx context.Context, after uint64) (all []LostChunk, more bool, err error) {
	body, err := c.get(ctx, "/v1/lost-chunks?after="+strconv.FormatUint(after, 10))
	if err != nil {
		return nil, false, err
	}
	defer body.Close()
	lines := bufio.NewScanner(body) // of at most 64 KiB
	for lines.Scan() {
		var line struct {
			LostChunk
			End *struct {
				More bool `json:"more"`
			} `json:"end"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, false, fmt.Errorf("read the answer of hvd: %w", err)
		}
		if line.End != nil {
			return all, line.End.More, nil
		}
		all = append(all, line.LostChunk)
	}
	if err := lines.Err(); err != nil {
		return nil, false, fmt.Errorf("read the answer of hvd: %w", err)
	}
	return nil, false, fmt.Errorf("read the answer of hvd: %w", io.ErrUnexpectedEOF)
}

// HealBody bounds what HealChunks takes at once: the bytes of all chunks, and 12 more for each.
const HealBody = 16 << 20

// HealChunks hands bytes to hvd that may be those of lost chunks, and returns the ids of those that are whole now. hvd takes only what has a lost chunk's hash; all else is refused without an error.
func (c *Client) HealChunks(ctx context.Context, all []ChunkBytes) (healed []uint64, err error) {
	var body bytes.Buffer
	for _, chunk := range all {
		body.Write(binary.LittleEndian.AppendUint64(nil, chunk.ID))
		body.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(chunk.Raw))))
		body.Write(chunk.Raw)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/v1/lost-chunks", &body)
	if err != nil {
		return nil, err
	}
	answer, err := c.do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, problem(answer.StatusCode, answer.Body)
	}
	var said struct {
		Healed []uint64 `json:"healed"`
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&said); err != nil {
		return nil, fmt.Errorf("read the answer of hvd: %w", err)
	}
	return said.Healed, nil
}
