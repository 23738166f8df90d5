package mount

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// A table of partitions may say anything: what is not on the disk is not mounted.
func TestParseTable(t *testing.T) {
	const head = `{"partitiontable":{"unit":"sectors","sectorsize":512,"partitions":[`
	got, err := parseTable([]byte(head+`{"node":"/x/disk1","start":2048,"size":100},{"node":"/x/disk15","start":0,"size":18446744073709551615},{"node":"/x/diskp2","start":4000,"size":97},{"node":"/y/other1","start":1,"size":1}]}}`), "/x/disk", 4096*512)
	want := []Partition{{Name: "p1", Off: 2048 * 512, Len: 100 * 512}, {Name: "p15", Reason: "it ends behind the end of the disk"}, {Name: "p2", Reason: "it ends behind the end of the disk"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	many, err := parseTable([]byte(head+strings.TrimSuffix(strings.Repeat(`{"node":"d1","start":1,"size":1},`, 1000), ",")+`]}}`), "d", 1<<20)
	if err != nil || len(many) != maxPartitions {
		t.Errorf("%d partitions, %v", len(many), err)
	}
	for _, text := range []string{"", "[]", `{"partitiontable":{"unit":"cylinders"}}`, `{"partitiontable":{"unit":"sectors","sectorsize":999999}}`, `{"partitiontable":{"partitions":[{"start":-1}]}}`} {
		if _, err := parseTable([]byte(text), "d", 1<<20); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestParseTags(t *testing.T) {
	got := parseTags("DEVNAME=x\nTYPE=ext4\nLABEL=a=b \\ c\nnonsense\n")
	if got["TYPE"] != "ext4" || got["LABEL"] != `a=b \ c` || len(got) != 3 {
		t.Errorf("got %q", got)
	}
}

func TestMountinfo(t *testing.T) {
	if got := unescape(`/a\040b\134c\09`); got != `/a b\c\09` {
		t.Errorf("unescaped %q", got)
	}
	all, err := mounts()
	if err != nil || !slices.ContainsFunc(all, func(e entry) bool { return e.point == "/" }) {
		t.Errorf("mounts are %+v, %v", all, err)
	}
	if pid := os.Getpid(); startOf(pid) == "" || startOf(pid) == startOf(1) || startOf(1<<22+1) != "" {
		t.Errorf("this process began at %q, process 1 at %q", startOf(pid), startOf(1))
	}
}

// Who lacks a program is told which, and where it comes from.
func TestCheck(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := Check()
	if find("nbdfuse") == "" && (err == nil || !strings.Contains(err.Error(), "nbdfuse") || !strings.Contains(err.Error(), "libnbd-bin")) {
		t.Errorf("without nbdfuse: %v", err)
	}
}

// Whatever sfdisk says, a partition lies on the disk or is not mounted.
func FuzzTable(f *testing.F) {
	const size = 1 << 20
	f.Add([]byte(`{"partitiontable":{"unit":"sectors","sectorsize":512,"partitions":[{"node":"d1","start":34,"size":100}]}}`))
	f.Add([]byte(`{"partitiontable":{"unit":"sectors","partitions":[{"node":"dp7","start":2047,"size":2}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		parts, err := parseTable(text, "d", size)
		if err != nil {
			return
		}
		for _, p := range parts {
			if p.Reason == "" && (p.Off > size || p.Len > size-p.Off) || strings.ContainsAny(p.Name, "/.") {
				t.Errorf("%+v is taken", p)
			}
		}
	})
}
