// Package secondcopy keeps a second copy of the frames that very many references lead to, such as those of the image that all guests were made from: in a file of their own, on another disk where there is one.
//
// The file is not part of the store's state. It says of each frame from where it was copied, is made anew as a whole, and losing it loses nothing but what it could have mended. Its format is docs/format/copies.md.
package secondcopy
