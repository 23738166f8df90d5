package control

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"

	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

// listenPeers opens an address for other machines, under TLS with certificates on both sides. section is that of the settings, for what goes wrong.
func (c *Control) listenPeers(section, address string, most tcpBounds, files mutualtls.Files) (net.Listener, error) {
	listener, err := listenLimited(address, most, func(from net.Addr) {
		c.tellOf(slog.LevelWarn, from, "connection of another machine refused: too many", "for", section, "max", most.settled, "maxInHandshake", most.shaking, "maxInHandshakeOfAnAddress", most.address)
	})
	if err != nil {
		return nil, fmt.Errorf("%s.listen: %w", section, err)
	}
	return tls.NewListener(listener, files.ServerConfig(func(err error) {
		if tell, heldBack := c.repeats.tell("TLS files of " + section + " " + err.Error()); tell {
			c.log.Error("TLS files cannot be used", "for", section, "error", err, "heldBack", heldBack)
		}
	})), nil
}

// SettlePeer counts a connection of such a listener out of its handshake, once. An error says that it is one too many, and should be closed.
func SettlePeer(conn net.Conn) error {
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

// checkPeerFiles tells whether files of TLS are such that a start would take them. Without any all is well.
func checkPeerFiles(section string, files mutualtls.Files) error {
	if files.Cert == "" {
		return nil
	}
	if err := checkSecrets([]secretFile{{section + ".key", files.Key}}); err != nil {
		return err
	}
	if err := files.Check(); err != nil {
		return fmt.Errorf("%s: %w", section, err)
	}
	return nil
}
