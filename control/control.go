package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/host"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// Options say what Open opens.
type Options struct {
	Config *config.Loaded
	// OpenEngine opens the store of a configuration. It returns block.ErrLocked when another daemon has it.
	OpenEngine func(ctx context.Context, cfg config.Config, log *slog.Logger) (Engine, error)
	// Log receives what an operator should know. Default: nowhere.
	Log *slog.Logger
	// Version of the program, for status and support bundles.
	Version string
	// Now is the clock; default time.Now.
	Now func() time.Time
	// DialReplica finds the hvd that a volume is replicated to. Default: over its unix socket, or TLS with the files of the configuration.
	DialReplica func(t replica.Target) (ReplicaPeer, error)
	// Boot identifies this boot of the machine, which loses what was not flushed when it ends. Default: what the kernel says.
	Boot string
}

// Control is a running store with its exports. Make it with Open; all methods may be called at once.
type Control struct {
	opts     Options
	log      *slog.Logger
	engine   Engine
	nbd      *nbd.Server
	tcp      *tcpDoor // nil where there is none
	tokens   *Tokens
	names    reservations
	settle   settler
	collect  collecting
	explains explainer
	repeats  *repeats // of what clients do, and schedules
	started  time.Time

	schedules scheduler

	repositories atomic.Pointer[host.Host] // of backups of other machines; nil without

	degraded struct {
		sync.Mutex
		since time.Time // when redundancy was first seen to be degraded; zero: it is not
	}
	senders      chan struct{} // a place for each point that is sent at once
	keepReceived uint64        // bytes of a point after which what has come is made durable; keepReceivedBytes, but for tests

	background context.Context // ends when Close begins
	stop       context.CancelFunc
	running    sync.WaitGroup

	mu struct {
		sync.Mutex
		attachments map[string]*attachment // by volume
		closing     bool                   // no work begins any more
		groups      []groupRecord          // ordered by name; replaced, never changed
		restores    map[string]*restoring  // by volume

		replications map[string]*replication // by volume
	}
	saving sync.Mutex // orders the writers of attachments.json, limits.json, quotas.json, groups.json, restores.json, replications.json and schedules.json
}

// Open opens the store, restores the attachments and only then listens for NBD clients. When it returns an error everything is closed.
func Open(ctx context.Context, opts Options) (*Control, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Boot == "" {
		opts.Boot = machineBoot(opts.Now().UTC().Format(time.RFC3339Nano))
	}
	c := &Control{opts: opts, log: opts.Log, started: opts.Now(), repeats: newRepeats(opts.Now), senders: make(chan struct{}, maxSenders), keepReceived: keepReceivedBytes}
	c.background, c.stop = context.WithCancel(context.Background())
	c.mu.attachments, c.mu.restores, c.mu.replications = map[string]*attachment{}, map[string]*restoring{}, map[string]*replication{}
	if c.opts.DialReplica == nil {
		c.opts.DialReplica = c.dialReplica
	}
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(err, c.Close(ctx))
	}
	return c, nil
}

func (c *Control) open(ctx context.Context) (err error) {
	cfg := c.opts.Config.Config
	if c.engine, err = c.opts.OpenEngine(ctx, cfg, c.log); err != nil {
		return fmt.Errorf("open the store in %s: %w", cfg.DataDir, err)
	}
	if err := os.MkdirAll(c.stateDir(), 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if c.tokens, err = openTokens(filepath.Join(c.stateDir(), "tokens.json"), c.opts.Now); err != nil {
		return err
	}
	if err := c.removeLeftovers(ctx); err != nil {
		return err
	}
	if err := c.openRestores(ctx); err != nil {
		return err
	}
	if err := c.openReplications(ctx); err != nil {
		return err
	}
	if err := c.restoreLimits(); err != nil {
		return err
	}
	if err := c.restoreQuotas(); err != nil {
		return err
	}
	if err := c.restoreGroups(); err != nil {
		return err
	}
	if err := c.restoreSchedules(); err != nil {
		return err
	}
	c.nbd, err = nbd.NewServer(sharedExports{c}, nbd.Options{
		MaxConnections:   cfg.NBD.MaxConnections,
		InFlightBytes:    int64(cfg.NBD.InFlight),
		MaxSlow:          cfg.NBD.MaxRequests,
		HandshakeTimeout: cfg.NBD.Handshake,
		StallTimeout:     cfg.NBD.StallTimeout,
		Events:           c.nbdEvents(),
	})
	if err != nil {
		return err
	}
	if err := c.restoreAttachments(); err != nil {
		return err
	}
	c.engine.HoldHistory(false)
	if err := c.listenShared(); err != nil {
		return err
	}
	if err := c.listenTCP(); err != nil {
		return err
	}
	if err := c.watchConditions(); err != nil {
		return err
	}
	if err := c.startSources(); err != nil {
		return err
	}
	return c.startSchedules()
}

// Close ends running work, finishes the NBD requests in flight (until ctx or the configured drain time ends), and closes the store. It
// is called once.
func (c *Control) Close(ctx context.Context) error {
	c.mu.Lock()
	c.mu.closing = true
	c.mu.Unlock()
	c.stop()
	var all []error
	if c.nbd != nil {
		c.dropWaiting()
		drain, cancel := context.WithTimeout(ctx, c.opts.Config.NBD.DrainTimeout)
		if err := c.nbd.Shutdown(drain); err != nil {
			c.log.Warn("connections were cut off", "reason", err)
		}
		cancel()
	}
	c.running.Wait()
	if c.engine != nil {
		c.engine.HoldHistory(true) // moments that are attached are opened again by the next start
	}
	all = append(all, c.closeDevices(), c.closeRestores())
	if c.engine != nil {
		all = append(all, c.engine.Close())
	}
	return errors.Join(all...)
}

// Tokens returns the table of tokens.
func (c *Control) Tokens() *Tokens { return c.tokens }

// Config returns the configuration that is in effect.
func (c *Control) Config() *config.Loaded { return c.opts.Config }

// Alarms tells how full the file system and the quotas of volumes are.
func (c *Control) Alarms() *Alarms { return c.engine.Alarms() }

// Log returns the log for the parts above.
func (c *Control) Log() *slog.Logger { return c.log }

// Background is a context that ends when Close begins.
func (c *Control) Background() context.Context { return c.background }

func (c *Control) stateDir() string { return filepath.Join(c.opts.Config.DataDir, "control") }

// begin counts in work that Close waits for; done counts it out. It fails when Close has begun.
func (c *Control) begin() (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closing {
		return nil, fmt.Errorf("hvd is shutting down: %w", block.ErrClosed)
	}
	c.running.Add(1)
	return c.running.Done, nil
}

// work is begin with a context that ends with Close too.
func (c *Control) work(ctx context.Context) (context.Context, func(), error) {
	done, err := c.begin()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(c.background, func() { cancel(fmt.Errorf("hvd is shutting down: %w", block.ErrClosed)) })
	return ctx, func() { unhook(); cancel(nil); done() }, nil
}

// goServe runs f until Close and logs why it ended.
func (c *Control) goServe(what string, f func() error) {
	done, err := c.begin()
	if err != nil {
		return
	}
	go func() {
		defer done()
		if err := f(); err != nil && c.background.Err() == nil {
			c.log.Error("server stopped", "server", what, "error", err)
		}
	}()
}
