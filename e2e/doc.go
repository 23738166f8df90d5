// Package e2e tests the product as its users meet it: the real hvd and hv-storage-fabric as processes, with the programs that people run against an NBD server and with
// real guests. It imports no part of the daemon; what it
// needs of NBD it speaks itself. Large stores are made by internal/synth.
//
// A test has a data directory and daemons of its own. Programs that are missing skip a test on a developer's machine and fail it where CI is set, since CI installs them, or HV_REQUIRE_TOOLS, since make test
// does; so do /dev/fuse and loop devices. Only the kernel's NBD client is missing nearly everywhere: tests of it are skipped without HV_REQUIRE_NBD.
// Most of what bad input is made of needs root (mounts, other users); without it those tests skip with a reason, in CI they fail.
//
// The folder libnbd has scripts for the Python module of libnbd, which reaches every command and flag. TestSoak is the one test that can be made as long as one likes: make soak.
//
// Tests that wait for most of their time are parallel and run after all others, a few at once. Who measures time or memory is not, nor who needs t.Setenv; what a parallel test gives its commands of variables
// goes through executeWith.
//
// Each test takes seconds. -short trims the loops and leaves the guests out.
package e2e
