package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
)

// Fields of the x86 boot header (Documentation/arch/x86/boot.rst), offsets in bytes into a bzImage.
const (
	bootSetupSectors  = 0x1f1 // u8: real-mode sectors after the first; 0 means 4
	bootHeaderMagic   = 0x202 // "HdrS"
	bootVersion       = 0x206 // u16: protocol version
	bootPayloadOffset = 0x248 // u32: from the end of the real-mode part
	bootPayloadLength = 0x24c // u32
	bootHeaderEnd     = 0x250

	bootSectorSize = 512
	// payloadVersion is the protocol that introduced the payload fields.
	payloadVersion = 0x0208
	// sizeTrailer is the length of the u32 that the kernel's build appends to every payload but gzip's: the unpacked size.
	sizeTrailer = 4
)

// extractVmlinux returns the uncompressed ELF kernel inside a bzImage.
//
// QEMU starts such a file at its PVH entry: no firmware and no decompressor run, which halves the boot under TCG.
func extractVmlinux(ctx context.Context, bzImage []byte) ([]byte, error) {
	payload, err := bzImagePayload(bzImage)
	if err != nil {
		return nil, fmt.Errorf("read bzImage: %w", err)
	}
	want := -1
	if !bytes.HasPrefix(payload, magicGzip) && !bytes.HasPrefix(payload, magicELF) {
		at := len(payload) - sizeTrailer
		want = int(binary.LittleEndian.Uint32(payload[at:]))
		payload = payload[:at]
	}
	kernel, err := decompress(ctx, payload)
	if err != nil {
		return nil, fmt.Errorf("read bzImage: %w", err)
	}
	if want >= 0 && len(kernel) != want {
		return nil, fmt.Errorf("read bzImage: want %d bytes of kernel, got %d", want, len(kernel))
	}
	if !bytes.HasPrefix(kernel, magicELF) {
		return nil, fmt.Errorf("read bzImage: the payload is not an ELF kernel")
	}
	return kernel, nil
}

// bzImagePayload returns the compressed kernel with its size trailer; it shares memory with bzImage.
func bzImagePayload(bzImage []byte) ([]byte, error) {
	if len(bzImage) < bootHeaderEnd || string(bzImage[bootHeaderMagic:bootHeaderMagic+4]) != "HdrS" {
		return nil, fmt.Errorf("no x86 boot header")
	}
	if version := binary.LittleEndian.Uint16(bzImage[bootVersion:]); version < payloadVersion {
		return nil, fmt.Errorf("boot protocol %#x is too old, want %#x", version, payloadVersion)
	}
	setupSectors := int64(bzImage[bootSetupSectors])
	if setupSectors == 0 {
		setupSectors = 4
	}
	start := (setupSectors+1)*bootSectorSize + int64(binary.LittleEndian.Uint32(bzImage[bootPayloadOffset:]))
	length := int64(binary.LittleEndian.Uint32(bzImage[bootPayloadLength:]))
	if length <= sizeTrailer || start+length > int64(len(bzImage)) {
		return nil, fmt.Errorf("payload at %d+%d lies outside the file of %d bytes", start, length, len(bzImage))
	}
	return bzImage[start : start+length], nil
}
