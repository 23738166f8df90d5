package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/dir"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/remote"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/retry"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/throttle"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

// location is where the repository is.
func (a *app) location() (string, error) {
	where := a.repo
	if where == "" {
		where = a.getenv("HV_BACKUP_REPO")
	}
	if where == "" {
		return "", console.Usagef("no repository: give --repo or set HV_BACKUP_REPO")
	}
	return where, nil
}

func (a *app) backend() (backend.Backend, error) {
	where, err := a.location()
	if err != nil {
		return nil, err
	}
	switch {
	case strings.HasPrefix(where, remote.Scheme):
		o, err := a.host(where)
		if err != nil {
			return nil, err
		}
		return remote.Open(o)
	case strings.Contains(where, "://"):
		o, err := a.storage(where)
		if err != nil {
			return nil, err
		}
		return s3.Open(o)
	}
	b, err := dir.Open(where)
	if err != nil {
		return nil, err
	}
	return throttle.Limit(b, a.bucket()), nil
}

// newBackend opens a place for a new repository.
func (a *app) newBackend(ctx context.Context, where string) (backend.Backend, error) {
	switch {
	case strings.HasPrefix(where, remote.Scheme):
		o, err := a.host(where)
		if err != nil {
			return nil, err
		}
		return remote.Create(ctx, o)
	case strings.Contains(where, "://"):
		o, err := a.storage(where)
		if err != nil {
			return nil, err
		}
		return s3.Create(ctx, o)
	}
	return dir.Create(where)
}

// host returns how to reach another hvd that keeps the repository.
func (a *app) host(where string) (o remote.Options, err error) {
	if o.Place, err = remote.ParsePlace(where); err != nil {
		return o, err
	}
	o.Limit, o.Again = a.bucket(), a.again
	o.Files = mutualtls.Files{
		Cert: cmp.Or(a.tls.Cert, a.getenv("HV_BACKUP_TLS_CERT")),
		Key:  cmp.Or(a.tls.Key, a.getenv("HV_BACKUP_TLS_KEY")),
		CA:   cmp.Or(a.tls.CA, a.getenv("HV_BACKUP_TLS_CA")),
	}
	if !o.Files.Set() {
		return o, console.Usagef("%s is always under TLS, with certificates on both sides: give --tls-cert, --tls-key and --tls-ca, or set HV_BACKUP_TLS_CERT, HV_BACKUP_TLS_KEY and HV_BACKUP_TLS_CA", where)
	}
	return o, nil
}

// storage returns how to reach object storage. Credentials are never arguments.
func (a *app) storage(where string) (o s3.Options, err error) {
	if o.Place, err = s3.ParsePlace(where); err != nil {
		return o, err
	}
	o.Limit, o.Again, o.Region = a.bucket(), a.again, cmp.Or(a.getenv("AWS_REGION"), a.getenv("AWS_DEFAULT_REGION"))
	o.Credentials, err = s3.FindCredentials(a.getenv)
	return o, err
}

// bucket is what all bytes to and from the repository go through, nil without a limit.
func (a *app) bucket() *throttle.Bucket {
	if a.limit == 0 {
		return nil
	}
	return throttle.NewBucket(uint64(a.limit))
}

// When somebody who waits is told that a place does not answer: after so many tries, some two seconds, and not more often than that.
const (
	triesUntold = 3
	toldEvery   = 30 * time.Second
)

// toldAgain is when that was.
type toldAgain struct {
	sync.Mutex
	at time.Time
}

// again says that the repository's place does not answer, and that it is asked again.
func (a *app) again(try int, err error) {
	a.told.Lock()
	defer a.told.Unlock()
	if try < triesUntold || time.Since(a.told.at) < toldEvery {
		return
	}
	a.told.at = time.Now()
	a.note("hv-backup: %v; it is tried again, up to %d times", err, retry.DefaultTries)
}

// open opens the repository with what the user has.
func (a *app) open(ctx context.Context) (*repository.Repository, error) {
	b, err := a.backend()
	if err != nil {
		return nil, fmt.Errorf("repository: %w", noRepository(err))
	}
	c, err := a.credentials(ctx, false)
	if err != nil {
		return nil, err
	}
	r, err := repository.Open(ctx, b, c)
	if err != nil {
		return nil, fmt.Errorf("open the repository in %s: %w", b.Location(), noRepository(err))
	}
	return r, nil
}

// noRepository adds what to do where there is no repository.
func noRepository(err error) error {
	if errors.Is(err, block.ErrNotFound) {
		err = fmt.Errorf("%w; see that --repo is right, and that what shall be mounted there is; `hv-backup repo init` makes a new one", err)
	}
	return err
}

// openIndexed opens the repository and reads its index. What is damaged of it is said, and left out.
func (a *app) openIndexed(ctx context.Context) (*repository.Repository, error) {
	r, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	return r, r.LoadIndex(ctx, a.warn)
}

func (a *app) warn(key string, err error) {
	a.note("hv-backup: %s cannot be used: %v; go on without it", key, err)
}

// credentials returns what opens key slots. A passphrase is asked for only without identities; twice for a new one.
func (a *app) credentials(ctx context.Context, isNew bool) (c seal.Credentials, err error) {
	for _, path := range a.identities {
		a.tellExposed(path)
		text, err := readSecret(path, seal.MaxSlot)
		if err != nil {
			return c, err
		}
		ids, err := age.ParseIdentities(bytes.NewReader(text))
		if err != nil {
			return c, console.Usagef("identity file %s holds no age identities", path) // the error may show a part of one
		}
		c.Identities = append(c.Identities, ids...)
	}
	path := a.passwordFile
	if path == "" {
		path = a.getenv("HV_BACKUP_PASSWORD_FILE")
	}
	switch {
	case path != "":
		a.tellExposed(path)
		c.Passphrase, err = passphraseOf(path)
	case len(c.Identities) == 0:
		c.Passphrase, err = a.ask(ctx, isNew)
	}
	return c, err
}

// tellExposed says that everybody on this host can read a file with a secret. It is used all the same, as it opened repositories so far.
func (a *app) tellExposed(path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 {
		a.note("hv-backup: every user of this host can read %s: `chmod 600` on it changes that", path)
	}
}

// readSecret reads a file with a secret, of at most max bytes.
func readSecret(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, max))
}

// maxPassphrase is how many bytes of a passphrase count.
const maxPassphrase = 4096

func passphraseOf(path string) ([]byte, error) {
	text, err := readSecret(path, maxPassphrase)
	if err != nil {
		return nil, fmt.Errorf("password file: %w", err)
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
		return nil, console.Usagef("the first line of password file %s is empty", path)
	}
	return line, nil
}

// ask asks for a passphrase on the terminal.
func (a *app) ask(ctx context.Context, isNew bool) ([]byte, error) {
	in, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, console.Usagef("no passphrase: give --password-file, set HV_BACKUP_PASSWORD_FILE, or use --identity")
	}
	read := func(prompt string) ([]byte, error) {
		fmt.Fprint(a.err, prompt)
		p, err := readPassword(ctx, in)
		fmt.Fprintln(a.err)
		return p, err
	}
	where, _ := a.location()
	p, err := read(fmt.Sprintf("passphrase of the repository in %s: ", where))
	if err != nil || !isNew {
		return p, err
	}
	again, err := read("the same again: ")
	if err == nil && !bytes.Equal(p, again) {
		err = console.Usagef("the two passphrases differ")
	}
	return p, err
}

// readPassword reads a line without showing it, until the context ends: an interrupt does not end a read of a terminal. That read goes on then, as long as this process.
func readPassword(ctx context.Context, in *os.File) ([]byte, error) {
	fd := int(in.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	silent := *before
	silent.Lflag = silent.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	silent.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return nil, err
	}
	type line struct {
		p   []byte
		err error
	}
	done := make(chan line, 1)
	go func() {
		p, err := bufio.NewReaderSize(io.LimitReader(in, maxPassphrase), maxPassphrase).ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(p) > 0 {
			err = nil
		}
		done <- line{bytes.TrimRight(p, "\r\n"), err}
	}()
	var l line
	select {
	case l = <-done:
	case <-ctx.Done():
		l.err = ctx.Err()
	}
	return l.p, errors.Join(l.err, unix.IoctlSetTermios(fd, unix.TCSETS, before))
}
