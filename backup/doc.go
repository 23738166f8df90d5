// Package backup brings content into a repository and back: images, block devices, volumes.
//
// Content is cut into regions of 16 MiB, which are cut into chunks by content; no chunk crosses the border of a region. A region is described by a page, 1,024 pages by a
// directory, and the directories by the manifest. Pages and directories are stored as chunks, so what two backups have in common is there once, down to the pages, and what
// is all zero is nowhere.
//
// A run reads regions one after the other, cuts and hashes them at once, and hands chunks to the repository in order. The package starts goroutines only within Run, Restore
// and Verify, which wait for them, and in a Device, whose Close does. A Device is a backup as a disk: it reads what it is asked for from the repository.
package backup
