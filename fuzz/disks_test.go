package fuzz

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/membership"
	"github.com/hyper-nixos/hyper-nixos/tiers/stripe"
)

// mended returns bytes whose last four are the crc of those before.
func mended(b []byte) []byte {
	b = bytes.Clone(b)
	if n := len(b) - 4; n >= 0 {
		binary.LittleEndian.PutUint32(b[n:], crc32.Checksum(b[:n], crc32.MakeTable(crc32.Castagnoli)))
	}
	return b
}

// FuzzMembers reads labels of directories, as they are and with their checksum mended: what is accepted is written back as it was.
func FuzzMembers(f *testing.F) {
	golden, err := os.ReadFile("../internal/membership/testdata/members.golden")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := membership.Parse(b)
		allowed(t, err)
		b = mended(b)
		l, err := membership.Parse(b)
		allowed(t, err)
		if err == nil && !bytes.Equal(l.Append(nil), b) {
			t.Fatalf("%+v is written in another way", l)
		}
	})
}

// FuzzShardHead does the same to heads of shards.
func FuzzShardHead(f *testing.F) {
	golden, err := os.ReadFile("../tiers/stripe/testdata/shard-2+1.00")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden[:4096])
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := stripe.ParseHead(b)
		allowed(t, err)
		b = mended(b)
		again, err := stripe.ParseHead(b)
		allowed(t, err)
		if err == nil && !bytes.Equal(again, b) {
			t.Fatal("a head is written in another way")
		}
	})
}
