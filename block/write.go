package block

// Write is one write of a batch.
type Write struct {
	Off  uint64 // bytes
	Data []byte // borrowed until the call that takes it returns
}
