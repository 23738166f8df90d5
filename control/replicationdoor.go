package control

import (
	"net"

	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
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
	listener, err := c.listenPeers("replication", cfg.Listen, replicaBounds, c.replicaFiles())
	if err != nil {
		return nil, err
	}
	c.log.Info("replicas of other hvd's volumes are received", "at", listener.Addr().String(), "from", cfg.PeerList())
	return listener, nil
}

func filesOf(cfg config.Replication) mutualtls.Files {
	return mutualtls.Files{Cert: cfg.Cert, Key: cfg.Key, CA: cfg.CA}
}

// replicaFiles are the files of TLS between two hvd.
func (c *Control) replicaFiles() mutualtls.Files { return filesOf(c.opts.Config.Replication) }

// CheckReplicationTLS tells whether the files of replication are such that a start would take them.
func CheckReplicationTLS(cfg config.Replication) error {
	return checkPeerFiles("replication", filesOf(cfg))
}
