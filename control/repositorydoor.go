package control

import (
	"fmt"
	"net"
	"net/http"

	"github.com/hyper-nixos/hyper-nixos/backup/host"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// repositoryBounds are how many connections of clients of repositories there can be, and how many that have not yet proved who they are. A client has up to 16.
var repositoryBounds = tcpBounds{settled: 256, shaking: 64, address: 32}

// ListenRepositories opens the address where other machines keep backup repositories, under TLS with certificates on both sides, and what serves them; nil where the configuration wants none.
func (c *Control) ListenRepositories() (net.Listener, http.Handler, error) {
	cfg := c.opts.Config.Repository
	if cfg.Listen == config.Off || cfg.Listen == "" {
		return nil, nil, nil
	}
	if err := CheckRepositoryTLS(cfg); err != nil {
		return nil, nil, err
	}
	rules, err := cfg.Rules()
	if err != nil {
		return nil, nil, err
	}
	quotas, peerQuotas, err := cfg.QuotaLists()
	if err != nil {
		return nil, nil, err
	}
	repositories := host.New(host.Options{
		Dir: cfg.Dir, Rules: rules, Keep: cfg.Keep, ReserveBytes: uint64(cfg.Reserve), Now: c.opts.Now, Quotas: quotas, PeerQuotas: peerQuotas,
		Events: host.Events{
			Made: func(peer, repository string) {
				c.log.Info("a repository of backups was made", "repository", repository, "peer", peer)
			},
			Refused: func(peer, repository string, err error) {
				if tell, heldBack := c.repeats.tell("repository refused\x00" + peer + "\x00" + repository); tell {
					c.log.Warn("a client of a repository was refused something", "repository", repository, "peer", peer, "error", err, "heldBack", heldBack)
				}
			},
			Failed: func(repository string, err error) {
				if tell, heldBack := c.repeats.tell("repository failed\x00" + repository); tell {
					c.log.Error("a repository could not be served", "repository", repository, "error", err, "heldBack", heldBack)
				}
			},
		},
	})
	if err := repositories.Missing(); err != nil { // no reason to keep guests from their disks
		c.log.Error("backup repositories of other machines cannot be served yet", "dir", cfg.Dir, "error", err)
	}
	listener, err := c.listenPeers("repository", cfg.Listen, repositoryBounds, repositoryFiles(cfg))
	if err != nil {
		return nil, nil, err
	}
	c.repositories.Store(repositories)
	c.log.Info("backup repositories of other machines are kept", "at", listener.Addr().String(), "in", cfg.Dir, "rules", len(rules), "keep", cfg.Keep)
	return listener, repositories, nil
}

func repositoryFiles(cfg config.Repository) mutualtls.Files {
	return mutualtls.Files{Cert: cfg.Cert, Key: cfg.Key, CA: cfg.CA}
}

// CheckRepositoryTLS tells whether the files of repository are such that a start would take them.
func CheckRepositoryTLS(cfg config.Repository) error {
	return checkPeerFiles("repository", repositoryFiles(cfg))
}

// Repositories returns counts of the backup repositories that others keep here, since the start; none without.
func (c *Control) Repositories() []host.Stats {
	if h := c.repositories.Load(); h != nil {
		return h.Stats()
	}
	return nil
}

// RepositoryUsage returns how much those repositories and their clients hold that have quotas, as far as that was counted.
func (c *Control) RepositoryUsage() []host.Usage {
	if h := c.repositories.Load(); h != nil {
		return h.Usage()
	}
	return nil
}

// nearlyFull is the part of a quota, of 100, from which on status tells of it.
const nearlyFull = 95

// repositoryProblems says what keeps repositories from being served, and which are nearly full.
func (c *Control) repositoryProblems() []string {
	h := c.repositories.Load()
	if h == nil {
		return nil
	}
	if err := h.Missing(); err != nil {
		return []string{"repositories of other machines cannot be served: " + err.Error()}
	}
	var problems []string
	for _, u := range h.Usage() {
		if u.UsedBytes/nearlyFull < u.QuotaBytes/100 {
			continue
		}
		what, setting := "repository "+u.Repository+" of other machines holds", "repository.quotas"
		if u.Peer != "" {
			what, setting = "client "+u.Peer+" of repositories has stored", "repository.peer-quotas"
		}
		problems = append(problems, fmt.Sprintf("%s %s of the %s that it may (%s): forget and prune backups, or raise it", what, units.Size(u.UsedBytes).Human(), units.Size(u.QuotaBytes).Human(), setting))
	}
	return problems
}
