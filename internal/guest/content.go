package guest

import (
	"fmt"
	"strconv"
)

// FilesDir is the folder of the guest's root disk that the task fsync-writer writes to.
const FilesDir = "/hv"

// latestName is the file in FilesDir whose one block is rewritten in place with the number of the newest file.
const latestName = "latest"

// FileName returns the name, inside FilesDir, of the file with number n, counted from 1.
func FileName(n int) string { return fmt.Sprintf("f%06d", n) }

// FileContent returns the bytes of file n: 4 to 25 KiB of decimal lines that no other place and no other file has, so a
// block that is lost, old or misplaced shows. The guest makes the same bytes with seq, see scripts/task.sh: change both.
func FileContent(n int) []byte {
	first, last := n*10000, n*10000+500+n*37%2000
	content := make([]byte, 0, (last-first+1)*10)
	for line := first; line <= last; line++ {
		content = strconv.AppendInt(content, int64(line), 10)
		content = append(content, '\n')
	}
	return content
}
