package crashtest

import (
	"encoding/binary"
	"fmt"
)

// sectorBytes is the unit of tokens.
const sectorBytes = 512

// Token names the content of one sector: who wrote it, with which operation, and where in that operation. Zero is a sector of zeroes. Tokens of a pool name content that
// any operation may write again, so that a store finds duplicates.
type Token uint64

const poolClient = 0xff

// tokenOf returns the token of the first sector of an operation; the next sectors count up from it.
func tokenOf(client, op int) Token { return Token(client+1)<<56 | Token(op)<<24 }

// poolToken returns the token of the first sector of one of the pool's runs.
func poolToken(run int) Token { return poolClient<<56 | Token(run)<<24 }

// String is "zero", or like "client 2 op 17 sector 3".
func (t Token) String() string {
	switch {
	case t == 0:
		return "zero"
	case t>>56 == poolClient:
		return fmt.Sprintf("pool run %d sector %d", t>>24&0xffffffff, t&0xffffff)
	}
	return fmt.Sprintf("client %d op %d sector %d", t>>56-1, t>>24&0xffffffff, t&0xffffff)
}

// fill writes the content of a token into one sector: half of it looks random, half compresses.
func (t Token) fill(p []byte) {
	if t == 0 {
		clear(p)
		return
	}
	x := uint64(t)
	for i := 0; i < sectorBytes; i += 8 {
		v := uint64(t)
		if i%16 == 8 {
			// splitmix64 (Steele, Lea, Flood, 2014).
			x += 0x9e3779b97f4a7c15
			v = (x ^ x>>30) * 0xbf58476d1ce4e5b9
			v = (v ^ v>>27) * 0x94d049bb133111eb
			v ^= v >> 31
		}
		binary.LittleEndian.PutUint64(p[i:], v)
	}
}

// Payload returns the bytes of n sectors whose tokens count up from first.
func Payload(first Token, n int) []byte {
	p := make([]byte, n*sectorBytes)
	for i := range n {
		(first + Token(i)).fill(p[i*sectorBytes : (i+1)*sectorBytes])
	}
	return p
}

// decode returns the token of a sector, or an error when the sector is not wholly what one operation wrote.
func decode(p []byte) (Token, error) {
	t := Token(binary.LittleEndian.Uint64(p))
	var want [sectorBytes]byte
	t.fill(want[:])
	if string(want[:]) != string(p[:sectorBytes]) {
		return 0, fmt.Errorf("a sector that begins as %v holds other bytes", t)
	}
	return t, nil
}
