package client

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// An hvd that knows no ranges sends all of a snapshot when it is asked for some; each is asked for by itself then.
func TestReadRangesOfAnOlderDaemon(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	requests := 0
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		part := content
		if off, err := strconv.Atoi(r.URL.Query().Get("offset")); err == nil {
			length, _ := strconv.Atoi(r.URL.Query().Get("length"))
			part = content[off : off+length]
		}
		w.Header().Set("Content-Type", contentType)
		out, err := transfer.NewWriter(w, uint64(len(part)))
		if err == nil {
			err = transfer.SendStream(r.Context(), out, bytes.NewReader(part), uint64(len(part)), nil)
		}
		if err != nil {
			t.Log(err) // the client may have heard enough
		}
	})}}
	s.Start()
	defer s.Close()
	c, err := New("unix:"+socket, "")
	if err != nil {
		t.Fatal(err)
	}
	var ranges []block.Range
	var want strings.Builder
	for off := uint64(3); off < 60_000; off += 7000 {
		ranges = append(ranges, block.Range{Off: off, Len: off / 10})
		want.Write(content[off : off+off/10])
	}
	ranges, rest := ranges[1:], want.String() // the first is empty
	got := make([]byte, len(rest))
	if err := c.ReadRanges(t.Context(), "v", "s", got, ranges); err != nil || string(got) != rest || requests != 1+len(ranges) {
		t.Errorf("%d requests, the same bytes: %v, %v", requests, string(got) == rest, err)
	}
}
