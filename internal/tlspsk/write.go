package tlspsk

import (
	"net"
	"sync"
)

// batch is how many full records go out with one system call.
const batch = 2

type outBuffer [batch * (recordHeader + maxPlain + 1 + tagSize)]byte

var outBuffers = sync.Pool{New: func() any { return new(outBuffer) }}

// Write implements net.Conn. An error is for good.
func (c *Conn) Write(p []byte) (int, error) {
	c.out.Lock()
	defer c.out.Unlock()
	if c.dead.Load() && c.out.err == nil {
		c.out.err = net.ErrClosed
	}
	if c.out.err != nil {
		return 0, c.out.err
	}
	buffer, _ := outBuffers.Get().(*outBuffer)
	defer outBuffers.Put(buffer)
	written := 0
	for written < len(p) {
		records := buffer[:0]
		size := 0
		for range batch {
			if written+size == len(p) {
				break
			}
			if c.out.records >= c.renewAt || c.answer.Load() || c.ask.Load() {
				if len(records) > 0 {
					break
				}
				records = c.appendKeyUpdate(records)
			}
			n := min(len(p)-written-size, cap(records)-len(records)-recordHeader-1-tagSize, maxPlain)
			records = c.out.appendRecord(records, recordData, p[written+size:written+size+n])
			size += n
		}
		if _, err := c.nc.Write(records); err != nil {
			c.out.err = err
			return written, err
		}
		written += size
	}
	return written, nil
}

// appendKeyUpdate appends the message after which this side goes on with its next secret, because it is time, because the peer asked, or to ask the peer.
func (c *Conn) appendKeyUpdate(dst []byte) []byte {
	c.answer.Store(false)
	request := byte(0)
	if c.ask.Swap(false) {
		request = 1
	}
	dst = c.out.appendRecord(dst, recordHandshake, appendMessage(nil, messageKeyUpdate, []byte{request}))
	c.out.renew()
	return dst
}

func (c *Conn) sendAlertLocked(a alert) error {
	_, err := c.nc.Write(c.out.appendRecord(nil, recordAlert, []byte{a.level(), byte(a)}))
	return err
}
