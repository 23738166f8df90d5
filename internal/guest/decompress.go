package guest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// maxUnpackedSize bounds what one compressed kernel or module may unpack to.
const maxUnpackedSize = 512 << 20

// Magic numbers of the formats that Linux build scripts use for kernels and modules.
var (
	magicGzip      = []byte{0x1f, 0x8b}
	magicXz        = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	magicZstd      = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicLZ4Legacy = []byte{0x02, 0x21, 0x4c, 0x18}
	magicELF       = []byte{0x7f, 'E', 'L', 'F'}
)

// decompress unpacks data by its magic number; an ELF file comes back as it is.
// xz goes through the xz program, because kernels use its x86 filter, which no Go library at hand has.
func decompress(ctx context.Context, data []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(data, magicELF):
		return data, nil
	case bytes.HasPrefix(data, magicGzip):
		r, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("unpack gzip: %w", err)
		}
		return readBounded("gzip", r)
	case bytes.HasPrefix(data, magicXz):
		return command{stdin: data}.run(ctx, "xz", "-dc", "--single-stream")
	case bytes.HasPrefix(data, magicZstd):
		// Kernels are packed with the largest window of the format's command line, 128 MiB.
		r, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, fmt.Errorf("unpack zstd: %w", err)
		}
		defer r.Close()
		return readBounded("zstd", r)
	case bytes.HasPrefix(data, magicLZ4Legacy):
		return readBounded("lz4", lz4.NewReader(bytes.NewReader(data)))
	default:
		return nil, fmt.Errorf("unpack: unknown format, first bytes %x", data[:min(len(data), 8)])
	}
}

// readBounded reads r to its end, which must come within maxUnpackedSize bytes.
func readBounded(format string, r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxUnpackedSize+1))
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", format, err)
	}
	if len(data) > maxUnpackedSize {
		return nil, fmt.Errorf("unpack %s: more than %d bytes", format, maxUnpackedSize)
	}
	return data, nil
}
