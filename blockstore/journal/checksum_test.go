package journal

import "hash/crc32"

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }
