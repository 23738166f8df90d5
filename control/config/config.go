package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Config is everything that can be set about hvd. The doc tags are the help of the flags, the comments of `hvd config show` and the
// descriptions of the schema.
type Config struct {
	DataDir       string     `yaml:"data-dir" doc:"Directory that holds the store. Made at the first start. Default: /var/lib/hyper-nixos for root, else $XDG_DATA_HOME/hyper-nixos."`
	Listen        string     `yaml:"listen" doc:"Loopback address of the control API over TCP, HOST:PORT, or off. It opens only while a token exists."`
	ControlSocket string     `yaml:"control-socket" doc:"Path of the control socket. Empty: hvd.sock in the data directory."`
	Memory        units.Size `yaml:"memory" doc:"Memory that hvd may use altogether; the store's caches get five eighths of it."`
	Log           Log        `yaml:"log"`
	Store         Store      `yaml:"store"`
	Alarms        Alarms     `yaml:"alarms"`
	NBD           NBD        `yaml:"nbd"`

	Replication Replication `yaml:"replication"`
	Repository  Repository  `yaml:"repository"`
}

// Replication holds settings of copies of volumes in other hvd.
type Replication struct {
	Listen string `yaml:"listen" doc:"Address where other hvd send replicas of their volumes to, HOST:PORT, or off. Always TLS with certificates on both sides."`
	Cert   string `yaml:"cert" doc:"PEM file of the certificate that this hvd shows others, as who listens and as who connects, with any intermediate ones behind it."`
	Key    string `yaml:"key" doc:"PEM file of that certificate's private key. Others must not be able to read it."`
	CA     string `yaml:"ca" doc:"PEM file of the authorities that sign the certificates of other hvd."`
	Peers  string `yaml:"peers" doc:"Names of the hvd that may send replicas here, separated by commas: the common name or a DNS name of their certificates. Empty: all that replication.ca lets in."`
}

// PeerList returns the names of the hvd that may send replicas.
func (r *Replication) PeerList() []string { return commas(r.Peers) }

// Repository holds settings of backup repositories that this hvd keeps for other machines.
type Repository struct {
	Listen  string        `yaml:"listen" doc:"Address where hv-backup of other machines keeps repositories, HOST:PORT, or off. Always TLS with certificates on both sides."`
	Dir     string        `yaml:"dir" doc:"Directory that holds them, a folder for each, outside of the data directory. It is not made, as its disk may just not be mounted; until it is there clients try again."`
	Cert    string        `yaml:"cert" doc:"PEM file of the certificate that hvd shows there, with any intermediate ones behind it."`
	Key     string        `yaml:"key" doc:"PEM file of that certificate's private key. Others must not be able to read it."`
	CA      string        `yaml:"ca" doc:"PEM file of the authorities that sign the certificates of clients."`
	Peers   string        `yaml:"peers" doc:"Who may do what, separated by commas: PEER=RIGHT or PEER=RIGHT:REPOSITORY. PEER is the common name or a DNS name of a certificate; RIGHT is append, which makes backups and reads none, read, or all."`
	Keep    time.Duration `yaml:"keep" doc:"How long what backups consist of must have been there, by this machine's clock, before anybody may delete it. 0: no time."`
	Reserve units.Size    `yaml:"reserve" doc:"Space of its file system that is left free: an object that would take of it is refused."`

	Quotas     string `yaml:"quotas" doc:"How much repositories may hold, separated by commas: NAME=SIZE, such as vms=500GiB, with *=SIZE for each other one."`
	PeerQuotas string `yaml:"peer-quotas" doc:"How much clients may have stored in all repositories together, separated by commas: PEER=SIZE, PEER being a name of a certificate, with *=SIZE for each other one. It needs a file system with extended attributes."`
}

// QuotaLists returns how much repositories, and clients, may hold.
func (r *Repository) QuotaLists() (repositories, peers access.Quotas, err error) {
	if repositories, err = access.ParseQuotas(r.Quotas, access.CheckName); err != nil {
		return nil, nil, fmt.Errorf("repository.quotas: %w", err)
	}
	if peers, err = access.ParseQuotas(r.PeerQuotas, access.CheckPeer); err != nil {
		return nil, nil, fmt.Errorf("repository.peer-quotas: %w", err)
	}
	return repositories, peers, nil
}

// Rules returns who may do what with repositories.
func (r *Repository) Rules() (access.Rules, error) { return access.ParseRules(r.Peers) }

// Log is what hvd writes to standard error.
type Log struct {
	Level  string `yaml:"level" enum:"debug,info,warn,error" doc:"Least severe messages that are logged: debug, info, warn or error."`
	Format string `yaml:"format" enum:"text,json" doc:"Form of the log on standard error: text or json."`
}

// Store holds settings of the storage engine.
type Store struct {
	StreamRoom   units.Size    `yaml:"stream-room" doc:"Most that streams of large writes may take on disk beside the log's cap, at most a sixteenth of the file system. They are acknowledged at the pace of the disk as long as they find room here; 0 is off."`
	LogCap       units.Size    `yaml:"log-cap" doc:"Most that the write log may take on disk. Writes wait for destage as it fills up."`
	SyncEvery    time.Duration `yaml:"sync-every" doc:"Longest time that an acknowledged write may stay unsynced when no guest flushes."`
	DestageAfter time.Duration `yaml:"destage-after" doc:"Age at which data leaves the log for segments even when the log has room."`
	Reserve      units.Size    `yaml:"reserve" doc:"Space of the file system kept for destage, deletes and reclaim. 0: max(1GiB, 3 %)."`
	Workers      int           `yaml:"workers" doc:"Goroutines that hash and compress. 0: one per CPU."`
	ColdAfter    time.Duration `yaml:"cold-after" doc:"How long a segment must have been left alone before its data is packed densely, into cold segments, in the background. Reads of it at random are slower then. 0: never."`
	Similarity   string        `yaml:"similarity" enum:"on,off" doc:"Whether cold data is packed beside data that it is like, such as older versions of it: on or off."`
	ColdEffort   string        `yaml:"cold-effort" enum:"low,normal,high" doc:"How hard cold data is compressed. normal: about 1 to 2 % smaller than low for one and a half times the CPU; high: 8 to 10 % smaller than low for nine times, and random reads of cold data decode 4 MiB instead of 1."`
	Disks        string        `yaml:"disks" doc:"Directories on further disks, separated by commas, that make up for the loss of one: copies of the log, and shards of segments."`
	Stripe       string        `yaml:"stripe" doc:"How sealed segments are cut over the disks, the data directory included: DATA+PARITY shards, such as 3+1, or off. As many disks may be lost as there are parity shards. Another value is brought about in the background."`
	LogCopies    int           `yaml:"log-copies" doc:"On how many disks the log lies, the data directory included, 1 to 3. 0: one more than store.stripe has parity shards, or as many as there are."`
	Restore      string        `yaml:"restore-data-dir" enum:"off,on" doc:"on: a data directory that is empty is lost, and is made anew from store.disks. off: it is refused, as its disk may just not be mounted."`
	Parity       string        `yaml:"parity" doc:"Reed-Solomon parity of each sealed segment and each sealed file of history, DATA+PARITY shards, such as 16+2, or off. Another value is brought about in the background."`
	KeyFile      string        `yaml:"key-file" doc:"File of the age identity that opens an encrypted store; only its owner may have access to it. A store that is made while it is set is encrypted, for good."`
	Credential   string        `yaml:"key-credential" doc:"Name of the systemd credential with that identity (LoadCredential=, LoadCredentialEncrypted=), instead of store.key-file."`
	Recipients   string        `yaml:"recipients" doc:"Further age recipients, separated by commas, that can open a store that is made encrypted, such as one whose identity is kept in a safe. Later: store key add."`
	GCRate       units.Size    `yaml:"gc-rate" doc:"Budget of garbage collection, bytes read and written a second. While guests are served a quarter of it is used."`
	GCRequests   int           `yaml:"gc-requests" doc:"Budget of garbage collection, requests to devices a second. While guests are served a quarter of it is used."`
	KeepRate     units.Size    `yaml:"keep-rate" doc:"Budget of parity, scrub, repair and of what goes cold, bytes read and written a second. While guests are served a quarter of it is used."`
}

// Alarms says from when on something is told as an alarm: in the log, in status, in store alarms and as a metric.
type Alarms struct {
	SpaceNear     int           `yaml:"space-near" doc:"Part of the file system, in percent, from which on the store is near full."`
	SpaceCritical int           `yaml:"space-critical" doc:"Part of the file system, in percent, from which on the store is nearly full."`
	QuotaNear     int           `yaml:"quota-near" doc:"Part of a quota, in percent, from which on it is near full."`
	QuotaCritical int           `yaml:"quota-critical" doc:"Part of a quota, in percent, from which on it is nearly full."`
	Overcommit    int           `yaml:"overcommit" doc:"How many times what is stored and free the volumes may promise together before that is an alarm. 0: never."`
	DegradedAfter time.Duration `yaml:"degraded-after" doc:"How long redundancy over several disks must have been degraded before that is an alarm."`
	Damage        int           `yaml:"damage" doc:"How many findings of damage since the start that are not mended are an alarm. 0: never."`
}

// DiskList returns the directories of the further disks.
func (s *Store) DiskList() []string { return commas(s.Disks) }

// commas splits a list.
func commas(list string) (all []string) {
	for d := range strings.SplitSeq(list, ",") {
		if d = strings.TrimSpace(d); d != "" {
			all = append(all, d)
		}
	}
	return all
}

// NBD holds settings of the NBD server.
type NBD struct {
	Socket          string        `yaml:"socket" doc:"Path of the NBD socket that serves all attached volumes. Empty: nbd.sock in the data directory."`
	VolumeSocketDir string        `yaml:"volume-socket-dir" doc:"Directory of the sockets of single volumes (attach --socket-per-volume). Empty: nbd in the data directory."`
	MaxConnections  int           `yaml:"max-connections" doc:"Most NBD connections at once, on all sockets together; over TCP three quarters of them."`
	InFlight        units.Size    `yaml:"in-flight" doc:"Most bytes of NBD requests in flight, on all connections together; at least 48MiB."`
	MaxRequests     int           `yaml:"max-requests" doc:"Most requests of one NBD connection that wait for the store at once. What its client sends beyond them is left unread meanwhile."`
	Handshake       time.Duration `yaml:"handshake-timeout" doc:"How long an NBD client may take from connecting to the end of its handshake, TLS included. Then its connection is closed."`
	StallTimeout    time.Duration `yaml:"stall-timeout" doc:"How long an NBD client may leave replies unread or requests unfinished while others wait for the memory that it holds; down to a fifth of it while several do. Then it is dropped."`
	DrainTimeout    time.Duration `yaml:"drain-timeout" doc:"How long a shutdown waits for requests in flight before it closes connections."`
	Listen          string        `yaml:"listen" doc:"Address of the NBD server over TCP, HOST:PORT, or off. It shows the volumes that are attached with --tcp. Beyond loopback it needs nbd.tls, and everything is encrypted."`
	TLS             TLS           `yaml:"tls"`
}

// TLS names the files of the NBD server over TCP: PEM files of certificates, a file of pre-shared keys, or both. They are read again when they have changed.
type TLS struct {
	Cert     string `yaml:"cert" doc:"PEM file of the NBD server's certificate, with any intermediate ones behind it."`
	Key      string `yaml:"key" doc:"PEM file of that certificate's private key. Others must not be able to read it."`
	ClientCA string `yaml:"client-ca" doc:"PEM file of the authorities that sign certificates of NBD clients. A client with neither such a certificate nor a pre-shared key gets no TLS."`
	PSKFile  string `yaml:"psk-file" doc:"File of pre-shared keys of NBD clients, a line IDENTITY:HEX for each, as psktool writes it. Instead of certificates, or beside them. Others must not be able to read it."`
}

// Set reports whether there is TLS.
func (t TLS) Set() bool { return t.Cert != "" || t.PSKFile != "" }

// Default returns the embedded defaults. DataDir depends on the user.
func Default() Config {
	return Config{
		DataDir: DefaultDataDir(),
		Listen:  "127.0.0.1:8081",
		Memory:  512 << 20,
		Log:     Log{Level: "info", Format: "text"},
		Store:   Store{LogCap: 2 << 30, StreamRoom: 8 << 30, SyncEvery: time.Second, DestageAfter: 30 * time.Second, ColdAfter: 24 * time.Hour, Similarity: "on", ColdEffort: "normal", Stripe: Off, Restore: Off, Parity: erasure.Default.String(), KeepRate: 96 << 20, GCRate: 128 << 20, GCRequests: 2000},
		Alarms:  Alarms{SpaceNear: 85, SpaceCritical: 95, QuotaNear: 85, QuotaCritical: 95, Overcommit: 16, Damage: 1},
		NBD:     NBD{MaxConnections: 4096, InFlight: 64 << 20, MaxRequests: 128, Handshake: 10 * time.Second, StallTimeout: 10 * time.Second, DrainTimeout: 20 * time.Second, Listen: Off},

		Replication: Replication{Listen: Off},
		Repository:  Repository{Listen: Off, Reserve: 1 << 30},
	}
}

// SystemDataDir is where the system's daemon keeps its store.
const SystemDataDir = "/var/lib/hyper-nixos"

// DefaultDataDir is SystemDataDir for root, else the user's data directory; empty when the user has no home.
func DefaultDataDir() string {
	if os.Geteuid() == 0 {
		return SystemDataDir
	}
	return UserDataDir()
}

// UserDataDir is $XDG_DATA_HOME/hyper-nixos or ~/.local/share/hyper-nixos; empty when the user has no home.
func UserDataDir() string {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "hyper-nixos")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "share", "hyper-nixos")
}

// resolve makes the paths absolute and fills in those that follow from the data directory.
func (c *Config) resolve() error {
	if c.DataDir == "" {
		return fmt.Errorf("data-dir is not set and this user has no home directory; use --data-dir: %w", block.ErrInvalid)
	}
	for _, p := range []struct {
		path     *string
		fallback string
	}{{&c.DataDir, ""}, {&c.ControlSocket, "hvd.sock"}, {&c.NBD.Socket, "nbd.sock"}, {&c.NBD.VolumeSocketDir, "nbd"}} {
		if *p.path == "" {
			*p.path = filepath.Join(c.DataDir, p.fallback)
			continue
		}
		if err := makeAbsolute(p.path); err != nil {
			return err
		}
	}
	disks := c.Store.DiskList()
	for i := range disks {
		if err := makeAbsolute(&disks[i]); err != nil {
			return err
		}
	}
	c.Store.Disks = strings.Join(disks, ",")
	for _, file := range []*string{
		&c.NBD.TLS.Cert, &c.NBD.TLS.Key, &c.NBD.TLS.ClientCA, &c.NBD.TLS.PSKFile, &c.Store.KeyFile, &c.Replication.Cert, &c.Replication.Key, &c.Replication.CA,
		&c.Repository.Cert, &c.Repository.Key, &c.Repository.CA, &c.Repository.Dir,
	} {
		if *file == "" {
			continue
		}
		if err := makeAbsolute(file); err != nil {
			return err
		}
	}
	return nil
}

func makeAbsolute(path *string) error {
	abs, err := filepath.Abs(*path)
	if err != nil {
		return fmt.Errorf("path %s: %w", *path, err)
	}
	*path = abs
	return nil
}
