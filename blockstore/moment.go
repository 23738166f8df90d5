package blockstore

// moment names an instant between two steps whose order matters. Tests stop the engine there and do what must not do harm.
type moment uint8

const (
	afterAppend       moment = iota + 1 // a write or discard is in the log, not yet in the overlay; Volume.mu is held shared
	afterControl                        // a control record is in the log, not yet in the tree; Store.ops is held, and Volume.mu where a head is closed
	afterPublishRoots                   // new roots can be read, the slots they replace are still there
	beforeRelease                       // the watermark is durable, the log files before it are still there
	afterChunkRow                       // a reader knows where a chunk lies, and has not read it
	beforeUnlink                        // the row of a segment is gone, its file is not
)

// at calls the test's hook, if there is one.
func (s *Store) at(m moment) {
	if s.opts.atMoment != nil {
		s.opts.atMoment(m)
	}
}
