package tiers_test

import (
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

var twoCopies = tiers.PlacementList{
	{Tier: "local", Key: tiers.SegmentKey(0x12, 1), Generation: 1, State: tiers.Live, VerifiedAt: 1234567890123456789},
	{Tier: "s3", Key: "segments/12", Generation: 1, State: tiers.Incoming},
}

// The encoding is part of every store that exists.
const twoCopiesHex = "01020000" +
	"051d0001" + "01000000" + "1581e97df4102211" + "6c6f63616c" + "303030303030303030303030303031322e30303030303030312e736567" +
	"020b0002" + "01000000" + "0000000000000000" + "7333" + "7365676d656e74732f3132"

func TestPlacementIsGolden(t *testing.T) {
	if got, err := tiers.AppendPlacement(nil, twoCopies); err != nil || hex.EncodeToString(got) != twoCopiesHex {
		t.Errorf("encoded as %x, %v", got, err)
	}
	b, _ := hex.DecodeString(twoCopiesHex)
	if got, err := tiers.DecodePlacement(b); err != nil || !reflect.DeepEqual(got, twoCopies) {
		t.Errorf("decoded as %+v, %v", got, err)
	}
	none, err := tiers.AppendPlacement(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tiers.DecodePlacement(none); err != nil || len(got) != 0 {
		t.Errorf("empty list: %+v, %v", got, err)
	}
	good := twoCopies[0]
	for what, change := range map[string]func(p *tiers.Placement){
		"no tier":       func(p *tiers.Placement) { p.Tier = "" },
		"a long tier":   func(p *tiers.Placement) { p.Tier = strings.Repeat("t", 65) },
		"no key":        func(p *tiers.Placement) { p.Key = "" },
		"a long key":    func(p *tiers.Placement) { p.Key = strings.Repeat("k", 513) },
		"a wrong state": func(p *tiers.Placement) { p.State = 77 },
	} {
		bad := good
		change(&bad)
		if _, err := tiers.AppendPlacement(nil, tiers.PlacementList{good, bad}); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := tiers.AppendPlacement(nil, make(tiers.PlacementList, 17)); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("17 copies: %v", err)
	}
}

func TestDamagedPlacementIsRefused(t *testing.T) {
	b, _ := hex.DecodeString(twoCopiesHex)
	for n := range b {
		if _, err := tiers.DecodePlacement(b[:n]); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("cut to %d B: %v", n, err)
		}
	}
	for _, change := range []struct {
		off  int
		to   byte
		want error
	}{{0, 2, block.ErrVersion}, {1, 17, block.ErrCorrupt}, {1, 1, block.ErrCorrupt}, {1, 3, block.ErrCorrupt}, {2, 1, block.ErrCorrupt}, {3, 1, block.ErrCorrupt},
		{4, 0, block.ErrCorrupt}, {4, 65, block.ErrCorrupt}, {5, 0, block.ErrCorrupt}, {6, 255, block.ErrCorrupt}, {7, 0, block.ErrCorrupt}, {7, 5, block.ErrCorrupt}} {
		c := append([]byte(nil), b...)
		c[change.off] = change.to
		if got, err := tiers.DecodePlacement(c); !errors.Is(err, change.want) {
			t.Errorf("byte %d = %d: %+v, %v", change.off, change.to, got, err)
		}
	}
	if _, err := tiers.DecodePlacement(append(b, 0)); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a byte too many: %v", err)
	}
}

func TestSegmentKeys(t *testing.T) {
	for _, id := range []block.SegmentID{0, 1, 0xabcdef, 1<<64 - 1} {
		k := tiers.SegmentKey(id, 0xfffffff0)
		if got, gen, ok := tiers.ParseSegmentKey(k); !ok || got != id || gen != 0xfffffff0 {
			t.Errorf("%s: %x, %x, %v", k, got, gen, ok)
		}
	}
	for _, k := range []string{"", strings.Repeat("0", 29), "00000000000000ZZ.00000001.seg", "0000000000000001.00000001.sEg", "0000000000000001.0000000A.seg", "+000000000000001.00000001.seg"} {
		if _, _, ok := tiers.ParseSegmentKey(k); ok {
			t.Errorf("%q was taken for a key", k)
		}
	}
}
