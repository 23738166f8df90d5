package control

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// clientLog tells an operator when a volume gets its first NBD client and loses its last one, and of clients that were lost. Single connections are for debugging: a client
// has many, and a thousand clients come at once. What repeats is told once a minute, with a count.
type clientLog struct {
	log     *slog.Logger
	repeats *repeats

	mu  sync.Mutex
	now map[string]int // clients by export
}

func newClientLog(log *slog.Logger, now func() time.Time) *clientLog {
	return &clientLog{log: log, repeats: newRepeats(now), now: map[string]int{}}
}

// count changes the number of an export's clients and returns it as it was and is.
func (l *clientLog) count(export string, by int) (was, is int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was = l.now[export]
	if is = was + by; is == 0 {
		delete(l.now, export)
	} else {
		l.now[export] = is
	}
	return was, is
}

func (l *clientLog) came(p nbd.Peer) {
	l.log.Debug("NBD client connected", "volume", p.Export, "address", p.Addr, "encrypted", p.Encrypted, "client", p.Identity)
	if was, _ := l.count(p.Export, 1); was == 0 {
		l.tell(slog.LevelInfo, "NBD: the volume has its first client", p, "encrypted", p.Encrypted)
	}
}

func (l *clientLog) went(p nbd.Peer, err error) {
	_, is := l.count(p.Export, -1)
	if err != nil {
		l.tell(slog.LevelWarn, "NBD client lost", p, "error", err)
	} else {
		l.log.Debug("NBD client left", "volume", p.Export, "address", p.Addr, "client", p.Identity)
	}
	if is == 0 {
		l.tell(slog.LevelInfo, "NBD: the last client of the volume has left", p)
	}
}

// tell logs an event of a volume unless it did so not long ago.
func (l *clientLog) tell(level slog.Level, message string, p nbd.Peer, about ...any) {
	now, heldBack := l.repeats.tell(message + "\x00" + p.Export)
	if !now {
		return
	}
	about = append([]any{"volume", p.Export, "address", p.Addr, "client", p.Identity}, about...)
	if heldBack > 0 {
		about = append(about, "heldBack", heldBack)
	}
	l.log.Log(context.Background(), level, message, about...)
}
