package control

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"

	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// maxReplicaConnections is how many other hvd can be connected at once, those that have not yet proved who they are included.
const maxReplicaConnections = 64

// ListenReplicas opens the address where other hvd send replicas to, under TLS with certificates on both sides; nil where the configuration wants none.
func (c *Control) ListenReplicas() (net.Listener, error) {
	cfg := c.opts.Config.Replication
	if cfg.Listen == config.Off || cfg.Listen == "" {
		return nil, nil
	}
	if err := CheckReplicationTLS(cfg); err != nil {
		return nil, err
	}
	listener, err := listenLimited(cfg.Listen, maxReplicaConnections, func(from net.Addr) {
		c.tellOf(slog.LevelWarn, from, "connection of another hvd refused: too many", "max", maxReplicaConnections)
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
