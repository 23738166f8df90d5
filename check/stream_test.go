package check

import (
	"os"
	"path/filepath"
	"testing"
)

// This reader sees writes of streams as the log's own wrote them, and a payload that is damaged behind the gap.
func TestStreamRecords(t *testing.T) {
	b, err := os.ReadFile("../blockstore/journal/testdata/stream.log")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) (kinds []uint8, lf *logFile) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, logPath(1)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		lf, file, err := openLogFile(dir, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		index := make([]byte, lf.footer.IndexLen)
		if err := readZeroFilled(file, index, lf.footer.IndexOff); err != nil {
			t.Fatal(err)
		}
		x := &indexReader{b: index}
		if err := lf.scan(file, 0, func(rec *logRecord) error {
			if rec.Kind == kindStream && rec.payloadAt()%logPage != 0 {
				t.Errorf("payload at %d", rec.payloadAt())
			}
			kinds = append(kinds, rec.Kind)
			return x.match(rec)
		}); err != nil {
			t.Fatal(err)
		}
		return kinds, lf
	}
	kinds, lf := read(b)
	if string(kinds) != string([]uint8{kindWrite, kindStream, kindTrim, kindStream}) || lf.end != lf.footer.DataEnd || lf.chain != lf.footer.Chain {
		t.Fatalf("records of kinds %v, %+v", kinds, lf)
	}
	b[lf.end-1] ^= 1 // the last byte of the last payload
	if kinds, lf := read(b); len(kinds) != 3 || lf.stop == nil {
		t.Errorf("a damaged payload was read: %v", kinds)
	}
}
