package check

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Unwrap opens what was wrapped for an age recipient. nil opens nothing: then what is sealed is checked by its checksums alone.
type Unwrap func(sealed []byte) ([]byte, error)

// ErrWrongKey means that no slot of the store's keys opens.
var ErrWrongKey = errors.New("the key opens no slot of the store's keys; store key list names whose do")

// Purposes and sizes of docs/format/keys.md.
const (
	restLog     = "hyper-nixos 2026 at rest: log"
	restLogFile = "hyper-nixos 2026 at rest: log file"
	restLogFoot = "hyper-nixos 2026 at rest: log footer"
	restSegment = "hyper-nixos 2026 at rest: segment"
	restFrames  = "hyper-nixos 2026 at rest: frames"
	restSlots   = "hyper-nixos 2026 at rest: slots"
	restHistory = "hyper-nixos 2026 at rest: history file"

	sealTag             = 16
	logBound            = 128 // bytes of a log file's header that its keys are derived from
	historyBound        = 96  // the same of a file of history
	historyThinnedBound = 128 // of one that was thinned
	maxMasters          = 1024

	// First bytes of nonces.
	nonceSector  = 0
	nonceRecord  = 1
	nonceMeta    = 2
	noncePayload = 3
)

// ring is what the slots of an encrypted store have: its keys.
type ring struct {
	store   block.UUID
	domain  []byte
	masters [][]byte

	frames map[frameKeyID]cipher.AEAD // of the segment that is being read
}

type frameKeyID struct {
	segment            uint64
	generation, master uint32
}

// keysBody is the JSON of the file.
type keysBody struct {
	Store string `json:"store"`
	Slots []struct {
		Recipient string    `json:"recipient"`
		Label     string    `json:"label"`
		Added     time.Time `json:"added"`
		Sealed    []byte    `json:"sealed"`
	} `json:"slots"`
	MAC []byte `json:"mac"`
}

func derive(secret, salt []byte, purpose string) []byte {
	key, err := hkdf.Key(sha256.New, secret, salt, purpose, 32)
	if err != nil {
		panic(err) // the lengths are right
	}
	return key
}

func newGCM(key []byte) cipher.AEAD {
	c, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the length is right
	}
	aead, err := cipher.NewGCM(c)
	if err != nil {
		panic(err)
	}
	return aead
}

// openRing opens the body of the file of keys with the first slot that opens, and checks who authenticated the slots. The error is ErrWrongKey, or a fault.
func openRing(body []byte, store block.UUID, unwrap Unwrap) (*ring, error) {
	var k keysBody
	if err := json.Unmarshal(body, &k); err != nil {
		return nil, faultf(0, "JSON", "%v", err)
	}
	if k.Store != store.String() || len(k.Slots) < 1 || len(k.Slots) > 32 {
		return nil, faultf(0, "1 to 32 slots of store "+store.String(), "%d of %.40q", len(k.Slots), k.Store)
	}
	var plain []byte
	for _, s := range k.Slots {
		if b, err := unwrap(s.Sealed); err == nil {
			plain = b
			break
		}
	}
	if plain == nil {
		return nil, ErrWrongKey
	}
	defer clear(plain)
	var in struct {
		Store   string   `json:"store"`
		Domain  []byte   `json:"domain"`
		Masters [][]byte `json:"masters"`
	}
	if json.Unmarshal(plain, &in) != nil || in.Store != store.String() || len(in.Domain) != domainKeySize || len(in.Masters) < 1 || len(in.Masters) > maxMasters {
		return nil, faultf(0, "a slot with the keys of the store", "other bytes") // more would show a part of the keys
	}
	for _, m := range in.Masters {
		if len(m) != 32 {
			return nil, faultf(0, "master keys of 32 B", "%d B", len(m))
		}
	}
	r := &ring{store: store, domain: in.Domain, masters: in.Masters}
	mac := hmac.New(sha256.New, derive(r.masters[len(r.masters)-1], store[:], restSlots))
	for _, s := range k.Slots {
		for _, part := range []string{s.Recipient, s.Label, s.Added.UTC().Format(time.RFC3339)} {
			_ = binary.Write(mac, binary.LittleEndian, uint32(len(part)))
			mac.Write([]byte(part))
		}
	}
	if !hmac.Equal(mac.Sum(nil), k.MAC) {
		return nil, faultf(0, "slots that who has the keys made", "others: somebody put himself into the list, or took somebody out")
	}
	return r, nil
}

// master returns a master key by its id.
func (r *ring) master(id uint32) ([]byte, error) {
	if id == 0 || uint64(id) > uint64(len(r.masters)) {
		return nil, faultf(0, fmt.Sprintf("a master key from 1 to %d", len(r.masters)), "%d", id)
	}
	return r.masters[id-1], nil
}

// frameKey returns what opens the frames of a segment.
func (r *ring) frameKey(id frameKeyID) (cipher.AEAD, error) {
	if aead := r.frames[id]; aead != nil {
		return aead, nil
	}
	m, err := r.master(id.master)
	if err != nil {
		return nil, err
	}
	salt := binary.LittleEndian.AppendUint64(append([]byte(nil), r.store[:]...), id.segment)
	salt = binary.LittleEndian.AppendUint32(salt, id.generation)
	if len(r.frames) >= 64 || r.frames == nil {
		r.frames = map[frameKeyID]cipher.AEAD{}
	}
	r.frames[id] = newGCM(derive(derive(m, r.store[:], restSegment), salt, restFrames))
	return r.frames[id], nil
}

// openFrame opens a sealed frame that lies at off of a segment. A fault's offset is in the frame.
func (r *ring) openFrame(fr *frame, segment uint64, generation uint32, off uint32) error {
	aead, err := r.frameKey(frameKeyID{segment, generation, fr.KeyID})
	if err != nil {
		f := asFault(err)
		f.off = 28
		return &f
	}
	bound := append(binary.LittleEndian.AppendUint32(nil, off), fr.head...)
	h := bound[4:]
	clear(h[20:24])
	clear(h[44:64])
	sealed := append(append(make([]byte, 0, len(fr.payload)+sealTag), fr.payload...), fr.head[44:44+sealTag]...)
	plain, err := aead.Open(sealed[:0], fr.head[32:44], sealed, bound)
	if err != nil {
		return faultf(44, "the authentication tag of this frame at this place", "another")
	}
	fr.payload = plain
	return nil
}

// logKeys opens what is in one log file.
type logKeys struct {
	aead   cipher.AEAD
	foot   []byte
	sealed [block.Size + sealTag]byte
}

// logKeys returns the keys of the file that begins with the header page.
func (r *ring) logKeys(id uint32, page []byte) (*logKeys, error) {
	m, err := r.master(id)
	if err != nil {
		f := asFault(err)
		f.off = 36
		return nil, &f
	}
	all := derive(m, r.store[:], restLog)
	return &logKeys{aead: newGCM(derive(all, page[:logBound], restLogFile)), foot: derive(all, page[:logBound], restLogFoot)}, nil
}

// historyKey returns what opens the file of history that begins with head.
func (r *ring) historyKey(id uint32, head []byte) (cipher.AEAD, error) {
	m, err := r.master(id)
	if err != nil {
		f := asFault(err)
		f.off = 44
		return nil, &f
	}
	return newGCM(derive(derive(m, r.store[:], restLog), head, restHistory)), nil
}

func logNonce(kind byte, off int64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{kind, 0, 0, 0}, uint64(off))
}

// sector checks the tag of a sector that lies at off of the file.
func (k *logKeys) sector(p, tag []byte, off int64) error {
	sealed := append(append(k.sealed[:0], p...), tag...)
	if _, err := k.aead.Open(sealed[:0], logNonce(nonceSector, off), sealed, nil); err != nil {
		return faultf(off, "the authentication tag of this sector at this place", "another")
	}
	return nil
}

// record checks the tag of a record whose header lies at off, and returns what a control record holds.
func (k *logKeys) record(head, descs, payload []byte, off int64) ([]byte, error) {
	bound := append(append(append([]byte(nil), head[:48]...), head[56:68]...), descs...)
	sealed := append(append(make([]byte, 0, len(payload)+sealTag), payload...), head[72:72+sealTag]...)
	plain, err := k.aead.Open(sealed[:0], logNonce(nonceRecord, off), sealed, bound)
	if err != nil {
		return nil, faultf(off+72, "the authentication tag of this record at this place", "another")
	}
	return plain, nil
}

// footer checks the tag of footer and index.
func (k *logKeys) footer(page, index []byte) bool {
	mac := hmac.New(sha256.New, k.foot)
	mac.Write(page[:96])
	mac.Write(index)
	return hmac.Equal(mac.Sum(nil), page[96:128])
}

// ringOf opens the keys of the store in dir; nil if it is not encrypted, or unwrap is nil.
func ringOf(dir string, unwrap Unwrap) (*ring, error) {
	if unwrap == nil {
		return nil, nil
	}
	copies, _, err := readSupers(dir)
	if err != nil {
		return nil, err
	}
	for _, s := range copies {
		if s == nil {
			continue
		}
		if s.Incompat&superEncrypted == 0 {
			return nil, errNotEncrypted
		}
		b, err := readSmall(filepath.Join(dir, keysName), maxKeys)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keysName, err)
		}
		body, err := keysFileBody(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keysName, err)
		}
		r, err := openRing(body, s.StoreID, unwrap)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keysName, err)
		}
		return r, nil
	}
	return nil, fmt.Errorf("no superblock: %w", block.ErrNotFound)
}

// errNotEncrypted says that a key was given for nothing.
var errNotEncrypted = fmt.Errorf("a key was given, and the store is not encrypted: leave the key out: %w", block.ErrInvalid)

// checkDomainOf compares the id of a domain key with the superblock's.
func (r *run) checkDomainOf(key []byte, unit string) {
	var id [16]byte
	blake3.DeriveKey(domainContext, key, id[:])
	if r.expect(id == r.super.DomainID, unit, 0, fmt.Sprintf("the key of domain %x", r.super.DomainID), fmt.Sprintf("that of %x", id)) {
		r.domain = key
	}
}
