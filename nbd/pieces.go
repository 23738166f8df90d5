package nbd

import "github.com/hyper-nixos/hyper-nixos/block"

// pieceSize is the length of the pieces of a long READ, in bytes.
const pieceSize = 1 << 20

// inPieces reports whether a READ is answered piece by piece, each in chunks of its own, so that it needs the memory of one piece only and a client
// that does not take the reply sits on no more. Simple replies are whole, and so is what a client wants unfragmented.
func (r *request) inPieces(f framing) bool {
	return r.len > mediumBuffer && f != simpleReplies && r.flags&cmdFlagDF == 0
}

// startPieces has a worker answer a READ piece by piece.
func (c *conn) startPieces(q *request) error {
	buf, err := c.borrow(pieceSize, false)
	if err != nil {
		return err
	}
	return c.startRead(q, buf)
}

// runPieces reads and sends all pieces but the last, which becomes the task's reply. An error ends the reply wherever it has come to.
func (t *task) runPieces() {
	c := t.c
	header := c.framing.dataHeader()
	end := t.q.off + t.q.len
	for at := t.q.off; ; {
		piece := block.Range{Off: at, Len: min(pieceSize, end-at)}
		p := t.buf.b[:header+int(piece.Len)]
		var err error
		if t.holes, err = c.dev.ReadAt(c.ctx, p[header:], at, t.holes[:0]); err != nil {
			t.answer(t.q.cookie, t.q.off, t.q.len, err)
			t.reply = t.small
			return
		}
		p = p[:encodePiece(p, &t.q, piece, c.framing, t.holes)]
		if at = piece.End(); at == end {
			c.srv.counters.count(CmdRead, t.q.len, false)
			t.reply = p
			return
		}
		if c.sender.send(p, nil) != nil {
			return // the client has been cut off
		}
	}
}
