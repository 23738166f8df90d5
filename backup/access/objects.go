package access

import "strings"

// kind is what objects with a key like one's are.
type kind struct {
	appendMakes, appendReads bool
	held                     bool  // nobody deletes it while it is young
	maxBytes                 int64 // that the format allows
}

// MaxBytes bounds every object: a run of the index is the longest that there is.
const MaxBytes = 256 << 20

// The kinds of objects, by the first part of their keys. What is held is what backups are lost without: an index is made anew from packs, marks and the rest hold nothing of a backup.
var kinds = map[string]kind{
	"packs":     {appendMakes: true, held: true, maxBytes: 64 << 20}, // of which appendReads a part: IsPack
	"manifests": {appendMakes: true, held: true, maxBytes: 8 << 20},
	"index":     {appendMakes: true, appendReads: true, maxBytes: MaxBytes},
	"config":    {appendReads: true, held: true, maxBytes: 64 << 10}, // appendMakes: see MayMake
	"keys":      {appendReads: true, held: true, maxBytes: 64 << 10}, // appendMakes: see MayMake
	"marks":     {appendReads: true, maxBytes: 64 << 20},
	"probes":    {maxBytes: 64},
	"bench":     {maxBytes: 64 << 20},
}

// unknown is what a newer format may have.
var unknown = kind{held: true, maxBytes: MaxBytes}

func kindOf(key string) kind {
	first, _, _ := strings.Cut(key, "/")
	if k, ok := kinds[first]; ok {
		return k
	}
	return unknown
}

// MayMake reports whether objects like this one may be made. made: the repository has its config. Until then Append makes that and key slots; later a key slot could keep owners out.
func (r Rights) MayMake(key string, made bool) bool {
	if r.Has(All) {
		return true
	}
	if !r.Has(Append) {
		return false
	}
	return kindOf(key).appendMakes || !made && (key == "config" || strings.HasPrefix(key, "keys/"))
}

// MayRead reports whether all of an object may be read. Of a pack Append reads a part all the same: PackPart.
func (r Rights) MayRead(key string) bool {
	return r.Has(Read) || r.Has(Append) && kindOf(key).appendReads
}

// MayStat reports whether length, time and hash of an object may be learned: that of what may be made or read.
func (r Rights) MayStat(key string) bool {
	return r.MayRead(key) || r.Has(Append) && kindOf(key).appendMakes
}

// MayList reports whether all objects may be listed whose keys begin with prefix. Append lists what it reads a part of: not manifests, which say when backups were made.
func (r Rights) MayList(prefix string) bool {
	if r.Has(Read) {
		return true
	}
	first, _, whole := strings.Cut(prefix, "/")
	return r.Has(Append) && whole && (first == "packs" || kindOf(prefix).appendReads)
}

// LimitBytes is how long an object can be.
func LimitBytes(key string) int64 { return kindOf(key).maxBytes }

// IsPack reports whether a key is that of a pack, of which Append may read what it says of itself.
func IsPack(key string) bool { return strings.HasPrefix(key, "packs/") }

// Held reports whether an object is one that nobody may delete while it is young.
func Held(key string) bool { return kindOf(key).held }
