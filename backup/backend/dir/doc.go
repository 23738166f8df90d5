// Package dir keeps the objects of a repository as files of a directory.
//
// An object is written to a file under tmp/, synced, given its name by a link that never replaces, and the folder is synced. Files are 0600 and folders 0700 unless the
// directory was made otherwise. What a crash leaves under tmp/ is removed when it is a day old: younger ones may belong to a writer on another machine.
package dir
