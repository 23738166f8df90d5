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
	afterDelta                          // a delta is durable, and not yet noted
	afterSidecar                        // a sidecar has its name, and the row of its segment does not say so yet
	beforeMended                        // the mended copy of a segment is whole, and the damaged one still there
	beforeCold                          // chunks are packed into cold frames, and not yet placed
	afterStriped                        // a segment lies in shards, and the cache of handles does not know it yet
	afterMendedShards                   // shards were made anew, and it is not recorded
	afterJournal                        // a checkpoint is noted; what waited for it is still there
	afterMove                           // some chunks of a segment have been moved out of it
	afterRecut                          // a region was cut anew
	afterJoin                           // extents of some regions name the older of two equal chunks
	afterTakeRoot                       // a moment of history has its root, and its layer is not built
	afterMark                           // an audit knows what may go, and has told nobody
	afterFullBegan                      // a full checkpoint has its number and its moment, and deltas may pass it
)

// at calls the test's hook, if there is one.
func (s *Store) at(m moment) {
	if s.opts.atMoment != nil {
		s.opts.atMoment(m)
	}
}
