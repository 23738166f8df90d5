package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	ledgerSlots = 64
	ledgerSlot  = 64 << 10 // bytes of a slot, which is written as a whole
	ledgerBurst = 8        // writes in flight
)

// ledger is a client that writes slots of an export, some at a time, and books what was replied. A slot holds its last replied write or one that was refused or never
// replied to since, and always one of them whole.
type ledger struct {
	rng      *rand.Rand
	last     int // number of the newest write
	replied  [ledgerSlots]int
	open     [ledgerSlots][]int // not known to be done, nor not to be done
	done     int                // replies without an error
	refusals int
}

func newLedger(seed uint64) *ledger { return &ledger{rng: rand.New(rand.NewPCG(seed, 7))} }

// content is what a write brings; 0 is none.
func (l *ledger) content(number int) []byte {
	if number == 0 {
		return make([]byte, ledgerSlot)
	}
	return randomBytes(number, ledgerSlot)
}

// burst sends some writes to different slots, then takes the replies. It returns an error when the connection breaks.
func (l *ledger) burst(c *nbdClient) error {
	type write struct{ slot, number int }
	under := map[uint64]write{}
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	for _, slot := range l.rng.Perm(ledgerSlots)[:ledgerBurst] {
		l.last++
		l.open[slot] = append(l.open[slot], l.last)
		cookie, err := c.send(nbdWrite, uint16(l.rng.IntN(4)/3*nbdFUA), uint64(slot)*ledgerSlot, ledgerSlot, l.content(l.last))
		if err != nil {
			return err
		}
		under[cookie] = write{slot, l.last}
	}
	for range ledgerBurst {
		cookie, refused, err := c.receive()
		if err != nil {
			return err
		}
		w, known := under[cookie]
		if !known {
			return fmt.Errorf("a reply to nobody: cookie %d", cookie)
		}
		delete(under, cookie)
		if refused != 0 {
			l.refusals++
			continue
		}
		l.done++
		l.replied[w.slot], l.open[w.slot] = w.number, nil
	}
	return nil
}

// until bursts until an error comes or stop says so.
func (l *ledger) until(socket, export string, stop func() bool) error {
	c, err := dialNBD(socket, export)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	for !stop() {
		if err := l.burst(c); err != nil {
			return err
		}
	}
	return nil
}

// audit compares an export with the book, and books what it finds.
func (l *ledger) audit(socket, export string) error {
	c, err := dialNBD(socket, export)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	got := make([]byte, ledgerSlot)
	for slot := range ledgerSlots {
		if err := c.read(got, uint64(slot)*ledgerSlot); err != nil {
			return fmt.Errorf("read slot %d: %w", slot, err)
		}
		may := append([]int{l.replied[slot]}, l.open[slot]...)
		at := slices.IndexFunc(may, func(number int) bool { return bytes.Equal(got, l.content(number)) })
		if at < 0 {
			return fmt.Errorf("slot %d holds none of the writes %v, of which the first was replied to: it begins % x", slot, may, got[:16])
		}
		l.replied[slot], l.open[slot] = may[at], nil
	}
	return nil
}
