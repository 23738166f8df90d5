// Package pack writes and reads packs: objects of a repository that hold chunks, many of them in each compressed and sealed frame. docs/format/repository.md has the bytes.
//
//	+--------+-------------+---------+---------+   +-----------+---------+
//	| header | wrapped key | frame 0 | frame 1 | … | directory | trailer |
//	+--------+-------------+---------+---------+   +-----------+---------+
//
// A frame is some chunks one after the other, compressed by zstd and sealed with the key of the writer's session. The directory lists frames and the chunks in them and is
// sealed with the index key, so a writer can read what others have stored without being able to read it. All numbers are little-endian.
//
// A Builder belongs to one goroutine. What was decoded belongs to the caller. The package does no I/O.
package pack
