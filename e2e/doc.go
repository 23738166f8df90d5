// Package e2e tests the product as its users meet it: the real hvd and hv-storage-fabric as processes, with the programs that people run against an NBD server and with
// real guests. It imports no part of the daemon; what it needs of NBD it speaks itself.
//
// A test has a data directory and daemons of its own. Programs that are missing skip a test on a developer's machine and fail it where CI is set, since CI installs them.
// Most of what bad input is made of needs root (mounts, other users); without it those tests skip with a reason, in CI they fail.
//
// Each test takes seconds. -short trims the loops and leaves the guests out.
package e2e
