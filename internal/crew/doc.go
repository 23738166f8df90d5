// Package crew has goroutines do jobs and keeps some of them for later ones. A new goroutine begins with a small stack, and a job that goes deep, such as a read down to the device, pays for making it larger
// in several steps each time; one that did such a job before does not.
package crew
