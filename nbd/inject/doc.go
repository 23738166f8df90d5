// Package inject wraps an nbd.Device and makes it slow or faulty on purpose, so that users can see what their guests do with a bad disk.
//
// It owns the faults and no data: whatever is not delayed, paced or failed goes to the wrapped device as it came. Which requests fail is
// decided by a seed and their order, so one client at depth 1 meets the same faults each time. A request that is failed never reaches the device.
//
// It starts no goroutine. While a fault may strike a request, the Try methods answer block.ErrWouldBlock, so waiting is done where the server
// waits for slow devices.
package inject
