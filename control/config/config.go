package config

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
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
	NBD           NBD        `yaml:"nbd"`
}

// Log is what hvd writes to standard error.
type Log struct {
	Level  string `yaml:"level" enum:"debug,info,warn,error" doc:"Least severe messages that are logged: debug, info, warn or error."`
	Format string `yaml:"format" enum:"text,json" doc:"Form of the log on standard error: text or json."`
}

// Store holds settings of the storage engine.
type Store struct {
	LogCap       units.Size    `yaml:"log-cap" doc:"Most that the write log may take on disk. Writes wait for destage as it fills up."`
	SyncEvery    time.Duration `yaml:"sync-every" doc:"Longest time that an acknowledged write may stay unsynced when no guest flushes."`
	DestageAfter time.Duration `yaml:"destage-after" doc:"Age at which data leaves the log for segments even when the log has room."`
	Reserve      units.Size    `yaml:"reserve" doc:"Space of the file system kept for destage, deletes and reclaim. 0: max(1GiB, 3 %)."`
	Workers      int           `yaml:"workers" doc:"Goroutines that hash and compress. 0: one per CPU."`
}

// NBD holds settings of the NBD server.
type NBD struct {
	Socket          string        `yaml:"socket" doc:"Path of the NBD socket that serves all attached volumes. Empty: nbd.sock in the data directory."`
	VolumeSocketDir string        `yaml:"volume-socket-dir" doc:"Directory of the sockets of single volumes (attach --socket-per-volume). Empty: nbd in the data directory."`
	MaxConnections  int           `yaml:"max-connections" doc:"Most NBD connections at once, on all sockets together."`
	InFlight        units.Size    `yaml:"in-flight" doc:"Most bytes of NBD requests in flight, on all connections together; at least 48MiB."`
	DrainTimeout    time.Duration `yaml:"drain-timeout" doc:"How long a shutdown waits for requests in flight before it closes connections."`
}

// Default returns the embedded defaults. DataDir depends on the user.
func Default() Config {
	return Config{
		DataDir: DefaultDataDir(),
		Listen:  "127.0.0.1:8081",
		Memory:  512 << 20,
		Log:     Log{Level: "info", Format: "text"},
		Store:   Store{LogCap: 2 << 30, SyncEvery: time.Second, DestageAfter: 30 * time.Second},
		NBD:     NBD{MaxConnections: 4096, InFlight: 64 << 20, DrainTimeout: 20 * time.Second},
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
		abs, err := filepath.Abs(*p.path)
		if err != nil {
			return fmt.Errorf("path %s: %w", *p.path, err)
		}
		*p.path = abs
	}
	return nil
}
