package fuzz

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// FuzzReplicaStream reads what another hvd may send as a replica: pieces lie within the volume, in order, and nothing else than the errors of a stream comes of whatever is in it.
func FuzzReplicaStream(f *testing.F) {
	var out bytes.Buffer
	w, err := replica.NewWriter(&out, 1<<20)
	if err := errors.Join(err, w.Data(0, make([]byte, 4096)), w.Data(8192, bytes.Repeat([]byte("0123456789abcdef"), 64)), w.Zero(64<<10, 512), w.End()); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := replica.NewReader(bytes.NewReader(b))
		next := uint64(0)
		for err == nil {
			var p replica.Piece
			if p, err = r.Next(); err != nil {
				break
			}
			if p.Off < next || p.Length == 0 || p.Length > r.Size()-p.Off || p.Data != nil && uint64(len(p.Data)) != p.Length {
				t.Fatalf("%d B at %d with %d B of data, of %d B after %d", p.Length, p.Off, len(p.Data), r.Size(), next)
			}
			next = p.Off + p.Length
		}
		var remote *transfer.RemoteError
		if !errors.Is(err, io.EOF) && !errors.Is(err, transfer.ErrCut) && !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) && !errors.As(err, &remote) {
			t.Fatalf("error %v", err)
		}
	})
}
