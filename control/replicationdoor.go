package control

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"

	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// replicaBounds are how many other hvd can be connected at once, and how many that have not yet proved who they are.
var replicaBounds = tcpBounds{settled: 64, shaking: 32, address: 16}

// ListenReplicas opens the address where other hvd send replicas to, under TLS with certificates on both sides; nil where the configuration wants none.
func (c *Control) ListenReplicas() (net.Listener, error) {
	cfg := c.opts.Config.Replication
	if cfg.Listen == config.Off || cfg.Listen == "" {
		return nil, nil
	}
	if err := CheckReplicationTLS(cfg); err != nil {
		return nil, err
	}
	listener, err := listenLimited(cfg.Listen, replicaBounds, func(from net.Addr) {
		c.tellOf(slog.LevelWarn, from, "connection of another hvd refused: too many", "max", replicaBounds.settled, "maxInHandshake", replicaBounds.shaking, "maxInHandshakeOfAnAddress", replicaBounds.address)
	})
	if err != nil {
		return nil, fmt.Errorf("replication.listen: %w", err)
	}
	c.log.Info("replicas of other hvd's volumes are received", "at", listener.Addr().String(), "from", cfg.PeerList())
	return tls.NewListener(listener, c.replicaFiles().ServerConfig(func(err error) {
		if tell, heldBack := c.repeats.tell("replication files " + err.Error()); tell {
			c.log.Error("the TLS files of replication cannot be used", "error", err, "heldBack", heldBack)
		}
	})), nil
}

// SettleReplica counts a connection of such a listener out of its handshake, once. An error says that it is one too many, and should be closed.
func SettleReplica(conn net.Conn) error {
	secured, ok := conn.(*tls.Conn)
	if !ok {
		return nil
	}
	limited, ok := secured.NetConn().(*limitedConn)
	if !ok {
		return nil
	}
	limited.l.mu.Lock()
	settled := limited.settled
	limited.l.mu.Unlock()
	if settled {
		return nil
	}
	return limited.Settle()
}

func filesOf(cfg config.Replication) replica.Files {
	return replica.Files{Cert: cfg.Cert, Key: cfg.Key, CA: cfg.CA}
}

// replicaFiles are the files of TLS between two hvd.
func (c *Control) replicaFiles() replica.Files { return filesOf(c.opts.Config.Replication) }

// CheckReplicationTLS tells whether the files of replication are such that a start would take them.
func CheckReplicationTLS(cfg config.Replication) error {
	if cfg.Cert == "" {
		return nil
	}
	if err := checkSecrets([]secretFile{{"replication.key", cfg.Key}}); err != nil {
		return err
	}
	if err := filesOf(cfg).Check(); err != nil {
		return fmt.Errorf("replication: %w", err)
	}
	return nil
}
