package dedup

import (
	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Hasher computes chunk identities for one goroutine. Its methods do not allocate.
type Hasher struct {
	h   *blake3.Hasher
	out [32]byte
}

// NewHasher returns a hasher for the domain of key. It holds about 10 KiB.
func NewHasher(key DomainKey) *Hasher {
	h, err := blake3.NewKeyed(key.key[:])
	if err != nil {
		panic(err) // the only cause is a key whose length is not 32
	}
	return &Hasher{h: h}
}

// Sum returns the identity of a chunk with the bytes p.
func (h *Hasher) Sum(p []byte) block.Hash {
	h.h.Reset()
	h.h.Write(p)
	h.h.Sum(h.out[:0])
	return h.out
}
