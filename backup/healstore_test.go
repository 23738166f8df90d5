package backup

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
)

// What a store has lost is offered in the versions that backups of the volume have, the nearest in time first, each once, and then in those of other volumes.
func TestChunkVersions(t *testing.T) {
	p := newPlace(t)
	now := content(noise(59, 2<<20))
	for i := range 4 {
		m := &repository.Manifest{Source: repository.Source{Kind: "volume", Name: "v"}, Consistency: "crash", Time: time.Unix(int64(1000*(i+1)), 0).UTC()}
		if i != 2 { // the third is the same as the second
			now = bytes.Clone(now)
			copy(now[1<<20:], fmt.Sprintf("version %d", i))
		}
		if err := Run(t.Context(), p.open(), now, m, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := content(bytes.Repeat([]byte("another 9"), 1<<18)).wholeOf(t, p.open(), "another"); err != nil {
		t.Fatal(err)
	}
	v := NewChunkVersions(p.open(), manifests(t, p.open()))
	defer v.Close()
	seen := func(at int64, stop string) (versions []string) {
		t.Helper()
		err := v.Each(t.Context(), ChunkPlace{Volume: "v", Time: time.Unix(at, 0), Offset: 1 << 20}, 9, func(raw []byte) (bool, error) {
			version, ok := strings.CutPrefix(string(raw), "version ")
			if !ok {
				version = "other"
			}
			versions = append(versions, version)
			return version == stop, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return versions
	}
	if got := seen(3900, ""); !slices.Equal(got, []string{"3", "1", "0", "other"}) {
		t.Errorf("from the last on: %q", got)
	}
	if got := seen(1100, "1"); !slices.Equal(got, []string{"0", "1"}) {
		t.Errorf("until it is found: %q", got)
	}
	err := v.Each(t.Context(), ChunkPlace{Volume: "v", Offset: 3 << 20}, 9, func([]byte) (bool, error) { return false, errors.New("behind the end") })
	if err != nil {
		t.Error(err)
	}
}
