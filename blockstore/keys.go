package blockstore

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// Keys are what opens a store that is encrypted at rest. With an identity a new store is encrypted; without one it is not. That never changes.
type Keys struct {
	// Identities open the store; one that does suffices.
	Identities []age.Identity
	// Recipients are further ones that a new store is made for, age1… or age1pq1…, such as one whose identity is kept in a safe.
	Recipients []string
}

// Files of keys, beside the superblock. They are part of the disk format.
const (
	domainFile = "domain.key" // of a store that is not encrypted
	keysFile   = "keys"       // of one that is
)

// keyFile is the name of the file that has the domain key.
func (s *superblock) keyFile() string {
	if s.Incompat&incompatEncrypted != 0 {
		return keysFile
	}
	return domainFile
}

// createKeys makes the keys of a new store and writes them, and returns its superblock, so far.
func (s *Store) createKeys() (*superblock, error) {
	super := &superblock{StoreID: block.UUID(uuid.New()), Created: s.opts.Now().UnixNano(), Cut: s.opts.Chunking}
	if len(s.opts.Keys.Identities) == 0 {
		if len(s.opts.Keys.Recipients) > 0 {
			return nil, fmt.Errorf("recipients of a store's keys, and no key that opens it: %w", keyring.ErrNoKey)
		}
		key, err := dedup.NewDomainKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		super.DomainID = key.ID()
		return super, s.writeKeys(domainFile, key.Bytes())
	}
	ring, err := keyring.New(super.StoreID)
	if err != nil {
		return nil, err
	}
	recipients, err := secret.Recipients(s.opts.Keys.Identities)
	if err != nil {
		return nil, err
	}
	f := keyring.NewFile(ring)
	for _, r := range append(recipients, s.opts.Keys.Recipients...) {
		if err := f.Add(ring, r, "", s.opts.Now()); err != nil {
			return nil, err
		}
	}
	b, err := f.Encode(ring)
	if err != nil {
		return nil, err
	}
	super.DomainID, super.Incompat = ring.Domain.ID(), incompatEncrypted
	return super, s.writeKeys(keysFile, b)
}

func (s *Store) writeKeys(name string, b []byte) error {
	if err := writeFileAtomic(s.fs, s.opts.Dir, s.path(name), b); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	return nil
}

// openKeys reads the key that chunk identities are keyed with, and those of a store that is encrypted.
func (s *Store) openKeys() error {
	if s.super.Incompat&incompatEncrypted == 0 {
		if len(s.opts.Keys.Identities) > 0 {
			return fmt.Errorf("a key was given, and the store is not encrypted: that is chosen when a store is made; start without the key, or copy the volumes into a new store: %w", block.ErrInvalid)
		}
		return s.openDomain()
	}
	f, b, err := readKeys(s.fs, s.path(keysFile))
	if err != nil {
		return err
	}
	s.keyBytes = b
	ring, err := f.Open(s.super.StoreID, s.opts.Keys.Identities)
	if err != nil {
		return fmt.Errorf("open keys %s: %w", s.path(keysFile), err)
	}
	if err := s.checkDomain(ring.Domain, keysFile); err != nil {
		return err
	}
	s.domain = ring.Domain
	s.keys = &frameKeys{ring: ring, generation: s.segments.generation}
	return nil
}

// openDomain reads the domain key of a store that is not encrypted.
func (s *Store) openDomain() error {
	b, err := readSmallFile(s.fs, s.path(domainFile), dedup.DomainKeySize)
	if errors.Is(err, os.ErrNotExist) {
		return &block.CorruptError{Source: s.path(domainFile), Want: "the key of domain " + s.super.DomainID.String(), Got: "no file"}
	}
	if err != nil {
		return fmt.Errorf("read domain key: %w", err)
	}
	s.keyBytes = b
	if s.domain, err = dedup.DomainKeyFromBytes(b); err != nil {
		return fmt.Errorf("read domain key %s: %w", s.path(domainFile), err)
	}
	return s.checkDomain(s.domain, domainFile)
}

func (s *Store) checkDomain(key dedup.DomainKey, file string) error {
	if got := key.ID(); got != s.super.DomainID {
		return &block.CorruptError{Source: s.path(file), Want: "the key of domain " + s.super.DomainID.String(), Got: "that of " + got.String()}
	}
	return nil
}

// readKeys reads the file of an encrypted store's keys.
func readKeys(fs vfs.FS, path string) (*keyring.File, []byte, error) {
	b, err := readSmallFile(fs, path, keyring.MaxFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, &block.CorruptError{Source: path, Want: "the keys of the store; restore the file from a copy, or nothing of the store can be read", Got: "no file"}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read keys: %w", err)
	}
	f, err := keyring.Decode(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, b, nil
}

// copyKeys writes the file of keys to a further disk that lacks it, or has an older one.
func (s *Store) copyKeys(disk string) error {
	path := s.fs.PathJoin(disk, s.super.keyFile())
	if b, err := readSmallFile(s.fs, path, keyring.MaxFile); err == nil && bytes.Equal(b, s.keyBytes) || s.keyBytes == nil {
		return nil
	}
	return writeFileAtomic(s.fs, disk, path, s.keyBytes)
}

// Encryption says how a store is encrypted at rest. There is no key in it.
type Encryption struct {
	Recipients []EncryptionKey // each opens the store alone
	MasterKey  int             // number of the master key that is written under, from 1 on; store key rotate raises it
}

// EncryptionKey is one recipient.
type EncryptionKey struct {
	Recipient string // age1… or age1pq1…
	Label     string
	Added     time.Time
}

// Encryption says who can open the store; nil if it is not encrypted.
func (s *Store) Encryption() *Encryption {
	if s.keys == nil {
		return nil
	}
	e := &Encryption{MasterKey: int(s.keys.ring.Current())}
	f, err := keyring.Decode(s.keyBytes)
	if err != nil {
		panic(err) // it was read at the open
	}
	for _, slot := range f.Slots {
		e.Recipients = append(e.Recipients, EncryptionKey{slot.Recipient, slot.Label, slot.Added})
	}
	return e
}

// KeySlots lists who can open the encrypted store in dir, and needs no key. A store that is not encrypted is block.ErrInvalid, a directory without one block.ErrNotFound.
func KeySlots(dir string) ([]keyring.Slot, error) {
	if _, err := encryptedSuper(vfs.Default, dir); err != nil {
		return nil, err
	}
	f, _, err := readKeys(vfs.Default, vfs.Default.PathJoin(dir, keysFile))
	if err != nil {
		return nil, err
	}
	return f.Slots, nil
}

func encryptedSuper(fs vfs.FS, dir string) (*superblock, error) {
	super, err := readSuper(fs, dir)
	if err == nil && super.Incompat&incompatEncrypted == 0 {
		err = fmt.Errorf("the store in %s is not encrypted: %w", dir, block.ErrInvalid)
	}
	return super, err
}

// EditKeys changes the keys of the encrypted store in dir, which must be closed: block.ErrLocked if it is not. What change did is durable when EditKeys returns nil, and of no effect else.
// A dry run writes nothing. No data is written again. disks are the further disks of the store, whose copies change in the same call; those of disks that are not named follow with the next start. When the copy on a disk
// cannot be written, the error says so, and the change is in force all the same.
func EditKeys(dir string, disks []string, identities []age.Identity, dryRun bool, change func(*keyring.File, *keyring.Ring) error) (err error) {
	fs := vfs.Default
	super, err := encryptedSuper(fs, dir)
	if err != nil {
		return err
	}
	lock, err := fs.Lock(fs.PathJoin(dir, "lock"))
	if err != nil {
		return fmt.Errorf("%w (%v)", block.ErrLocked, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	path := fs.PathJoin(dir, keysFile)
	f, _, err := readKeys(fs, path)
	if err != nil {
		return err
	}
	ring, err := f.Open(super.StoreID, identities)
	if err != nil {
		return fmt.Errorf("open keys %s: %w", path, err)
	}
	if err := change(f, ring); err != nil || dryRun {
		return err
	}
	b, err := f.Encode(ring)
	if err != nil {
		return err
	}
	if err := writeFileAtomic(fs, dir, path, b); err != nil {
		return err
	}
	var errs []error
	for _, d := range disks {
		if err := copyEditedKeys(fs, d, super.StoreID, b); err != nil {
			errs = append(errs, fmt.Errorf("the keys in %s are changed, the copy in %s is not, and follows with the next start of hvd: %w", dir, d, err))
		}
	}
	return errors.Join(errs...)
}

// copyEditedKeys writes keys to a further disk of a store.
func copyEditedKeys(fs vfs.FS, disk string, store block.UUID, b []byte) error {
	super, err := encryptedSuper(fs, disk)
	if err != nil {
		return err
	}
	if super.StoreID != store {
		return fmt.Errorf("it is a disk of store %v, and not of %v: %w", super.StoreID, store, block.ErrInvalid)
	}
	return writeFileAtomic(fs, disk, fs.PathJoin(disk, keysFile), b)
}

// HasDisks reports whether the store in dir lies on several disks, so that there are copies of its keys.
func HasDisks(dir string) (bool, error) {
	super, err := readSuper(vfs.Default, dir)
	return err == nil && super.Incompat&incompatDisks != 0, err
}

// frameKeys opens frames. It is nil for a store that is not encrypted.
type frameKeys struct {
	ring       *keyring.Ring
	generation func(block.SegmentID) uint32

	mu   sync.RWMutex
	keys map[frameKey]*segment.Key
}

type frameKey struct {
	segment        block.SegmentID
	id, generation uint32
}

// maxFrameKeys bounds the keys that are kept. One takes about 1 KiB.
const maxFrameKeys = 2048

// of returns the key of a segment.
func (k *frameKeys) of(id block.SegmentID, generation, master uint32) (*segment.Key, error) {
	name := frameKey{id, master, generation}
	k.mu.RLock()
	key := k.keys[name]
	k.mu.RUnlock()
	if key != nil {
		return key, nil
	}
	key, err := segment.NewKey(k.ring, master, id, generation)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil || len(k.keys) >= maxFrameKeys {
		k.keys = make(map[frameKey]*segment.Key)
	}
	k.keys[name] = key
	return key, nil
}

// writing returns the key of a segment that is begun; nil in a store that is not encrypted.
func (k *frameKeys) writing(id block.SegmentID, generation uint32) (*segment.Key, error) {
	if k == nil {
		return nil, nil
	}
	return segment.NewKey(k.ring, k.ring.Current(), id, generation)
}

// open opens a frame that was read at off of a segment, of a generation or, if that is 0, the one of its row. In an encrypted store one in plain text is damage: nobody who had the key wrote it. A segment that went
// while it was read is block.ErrNotFound: its chunks have moved.
func (k *frameKeys) open(f *segment.Frame, id block.SegmentID, generation, off uint32, dec *segment.Decoder) error {
	if k == nil {
		return nil
	}
	if f.KeyID == 0 {
		return &block.CorruptError{Source: fmt.Sprintf("segment %06x", id), Offset: int64(off), Want: "a sealed frame", Got: "one in plain text"}
	}
	if generation == 0 {
		if generation = k.generation(id); generation == 0 {
			return fmt.Errorf("segment %06x: %w", id, block.ErrNotFound)
		}
	}
	key, err := k.of(id, generation, f.KeyID)
	if err != nil {
		return &block.CorruptError{Source: fmt.Sprintf("segment %06x", id), Offset: int64(off), Want: "a key of the store", Got: err.Error()}
	}
	return f.Open(key, off, dec)
}

// logKeys returns the keys of an encrypted store's log; nil for another store.
func (k *frameKeys) logKeys() *keyring.Ring {
	if k == nil {
		return nil
	}
	return k.ring
}
