package guestagent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// maxLine bounds an answer, in bytes.
const maxLine = 1 << 20

// Agent is a connection to the agent of one guest. Not for use by several goroutines at once.
type Agent struct {
	path string
	conn net.Conn
	r    *bufio.Reader
}

// Error is what an agent answered instead of doing what it was asked for.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error is the agent's own text.
func (e *Error) Error() string { return fmt.Sprintf("the guest agent says: %s (%s)", e.Desc, e.Class) }

// Dial connects to the agent at a unix socket and waits until it answers, which it does when the guest runs it.
func Dial(ctx context.Context, path string) (*Agent, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	a := On(conn, path)
	if err := a.sync(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("guest agent at %s does not answer; does the guest run qemu-guest-agent? %w", path, err), conn.Close())
	}
	return a, nil
}

// On returns the agent at the other end of a connection, which it owns from now on. Nothing is sent yet. path is what errors call it.
func On(conn net.Conn, path string) *Agent {
	return &Agent{path: path, conn: conn, r: bufio.NewReaderSize(conn, 4096)}
}

// Ping asks the agent whether it is there, and returns its version, "unknown" if it does not tell. It may be called again after an error.
func (a *Agent) Ping(ctx context.Context) (version string, err error) {
	var nothing, info struct {
		Version string `json:"version"`
	}
	if err = a.sync(ctx); err == nil {
		err = a.send(ctx, nil, "guest-ping", nil)
	}
	if err == nil {
		err = a.receive(&nothing)
	}
	if err == nil {
		err = a.send(ctx, nil, "guest-info", nil)
	}
	if err == nil {
		err = a.receive(&info)
	}
	if refused := (*Error)(nil); errors.As(err, &refused) { // it may be told not to answer that
		err = nil
	}
	if err != nil {
		return "", fmt.Errorf("guest agent at %s: %w", a.path, err)
	}
	return cmp.Or(info.Version, "unknown"), nil
}

// Close ends the connection. It thaws nothing.
func (a *Agent) Close() error { return a.conn.Close() }

// sync leaves behind whatever the channel has of earlier clients: the answer to guest-sync-delimited begins with a byte that JSON never has.
func (a *Agent) sync(ctx context.Context) error {
	id := rand.Int32()
	if err := a.send(ctx, []byte{0xff}, "guest-sync-delimited", map[string]any{"id": id}); err != nil {
		return err
	}
	for {
		for read := 0; ; read++ {
			if _, err := a.r.ReadSlice(0xff); err == nil {
				break
			} else if !errors.Is(err, bufio.ErrBufferFull) || read > maxLine/4096 {
				return err
			}
		}
		var got int32
		if err := a.receive(&got); err != nil {
			return err
		}
		if got == id {
			return nil
		} // else it is the answer to somebody who did not wait for it
	}
}

// send writes a request. The deadline is ctx's, for the answer too.
func (a *Agent) send(ctx context.Context, before []byte, execute string, arguments map[string]any) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Hour)
	}
	if err := a.conn.SetDeadline(deadline); err != nil {
		return err
	}
	request := map[string]any{"execute": execute}
	if arguments != nil {
		request["arguments"] = arguments
	}
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	_, err = a.conn.Write(bytes.Join([][]byte{before, text, []byte("\n")}, nil))
	return err
}

// receive reads an answer.
func (a *Agent) receive(into any) error {
	var line []byte
	for {
		part, err := a.r.ReadSlice('\n')
		if line = append(line, part...); err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		if len(line) > maxLine {
			return fmt.Errorf("an answer of more than %d B", maxLine)
		}
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("the guest agent's answer: %w", err)
	}
	if answer.Error != nil {
		return answer.Error
	}
	if err := json.Unmarshal(answer.Return, into); err != nil {
		return fmt.Errorf("the guest agent's answer: %w", err)
	}
	return nil
}

// Freeze flushes and freezes all file systems of the guest, which waits with its writes from then on, and returns how many. After an error some may be frozen: Thaw.
func (a *Agent) Freeze(ctx context.Context) (fileSystems int, err error) {
	if err = a.send(ctx, nil, "guest-fsfreeze-freeze", nil); err == nil {
		err = a.receive(&fileSystems)
	}
	if err != nil {
		return 0, fmt.Errorf("freeze the guest at %s: %w", a.path, err)
	}
	return fileSystems, nil
}

// Thaw lets the guest go on. It may follow a Freeze that was given up: the agent does one after the other.
func (a *Agent) Thaw(ctx context.Context) (err error) {
	var fileSystems int
	if err = a.sync(ctx); err == nil {
		err = a.send(ctx, nil, "guest-fsfreeze-thaw", nil)
	}
	if err == nil {
		err = a.receive(&fileSystems)
	}
	if err != nil {
		return fmt.Errorf("the guest at %s may still be frozen, and could not be told to go on; it goes on when it is reset, or when guest-fsfreeze-thaw reaches its agent: %w", a.path, err)
	}
	return nil
}

const (
	freezeTime = 10 * time.Second // for all guests to be at rest
	thawTime   = 30 * time.Second // for each to go on
)

// AtRest calls do while the file systems of guests are frozen, and thaws them whatever happens: what ctx, which may end meanwhile, or do return. paths are the sockets of their agents. If a guest cannot be frozen, do is not called.
func AtRest(ctx context.Context, paths []string, do func() error) (err error) {
	freezing, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	agents := make([]*Agent, 0, len(paths))
	defer func() {
		for _, a := range agents {
			err = errors.Join(err, a.Close())
		}
	}()
	for _, path := range paths { // who does not answer keeps nobody frozen
		a, err := Dial(freezing, path)
		if err != nil {
			return err
		}
		agents = append(agents, a)
	}
	for i, a := range agents {
		if _, err := a.Freeze(freezing); err != nil {
			return errors.Join(err, thaw(ctx, agents[:i+1]))
		}
	}
	return errors.Join(do(), thaw(ctx, agents))
}

// thaw thaws guests at once.
func thaw(ctx context.Context, agents []*Agent) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTime)
	defer cancel()
	results := make(chan error, len(agents))
	for _, a := range agents {
		go func() { results <- a.Thaw(ctx) }()
	}
	var all error
	for range agents {
		all = errors.Join(all, <-results)
	}
	return all
}
