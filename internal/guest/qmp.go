package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// qmpTimeout bounds one command when the caller's context does not.
const qmpTimeout = 30 * time.Second

// qmpMessage is any message of the QEMU Machine Protocol: a greeting, an event, a result or an error.
type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// qmpRun connects to a QMP socket, negotiates, runs one command and returns its result. Events are skipped.
// A connection for each command is cheap on a unix socket, and leaves no state that a failed command could spoil.
func qmpRun(ctx context.Context, socket, name string, arguments any) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("qmp %s: %w", name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	replies := json.NewDecoder(bufio.NewReader(conn))
	var greeting json.RawMessage
	if err := replies.Decode(&greeting); err != nil {
		return nil, fmt.Errorf("qmp %s: read greeting: %w", name, err)
	}
	if _, err := qmpCall(conn, replies, "qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return qmpCall(conn, replies, name, arguments)
}

func qmpCall(conn net.Conn, replies *json.Decoder, name string, arguments any) (json.RawMessage, error) {
	request := map[string]any{"execute": name}
	if arguments != nil {
		request["arguments"] = arguments
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("qmp %s: %w", name, err)
	}
	if _, err := conn.Write(append(body, '\n')); err != nil {
		return nil, fmt.Errorf("qmp %s: %w", name, err)
	}
	for {
		var message qmpMessage
		if err := replies.Decode(&message); err != nil {
			return nil, fmt.Errorf("qmp %s: read reply: %w", name, err)
		}
		switch {
		case message.Error != nil:
			return nil, fmt.Errorf("qmp %s: %s: %s", name, message.Error.Class, message.Error.Desc)
		case message.Return != nil:
			return message.Return, nil
		}
	}
}
