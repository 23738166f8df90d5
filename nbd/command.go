package nbd

// Command is an NBD transmission command.
type Command uint16

// The commands that are served.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisc        Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6

	commandCount = 7
)

var commandNames = [commandCount]string{"read", "write", "disc", "flush", "trim", "cache", "write-zeroes"}

// String returns the protocol's name of the command in lower case.
func (c Command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return "unknown"
}

// request is the header of one request.
type request struct {
	flags  uint16
	cmd    Command
	cookie uint64
	off    uint64 // bytes
	len    uint32 // bytes
}

// parseRequest decodes the header in p, of at least requestSize bytes; ok is false when its magic is wrong.
func parseRequest(p []byte) (r request, ok bool) {
	_ = p[requestSize-1]
	r = request{
		flags:  be.Uint16(p[4:]),
		cmd:    Command(be.Uint16(p[6:])),
		cookie: be.Uint64(p[8:]),
		off:    be.Uint64(p[16:]),
		len:    be.Uint32(p[24:]),
	}
	return r, be.Uint32(p) == magicRequest
}

func (r *request) fua() bool { return r.flags&cmdFlagFUA != 0 }

// check decides whether the device may be asked at all. It is the only place where requests are validated; what passes lies inside the
// device, and its payload inside MaxPayload.
func (r *request) check(dev Device, structured bool) refusal {
	if r.cmd >= commandCount {
		return refuseCommand
	}
	if r.flags&^r.allowedFlags(structured) != 0 {
		return refuseFlags
	}
	switch r.cmd {
	case CmdFlush:
		if r.off != 0 || r.len != 0 {
			return refuseFlushRange
		}
		return accepted
	case CmdRead:
		if r.len > MaxPayload && r.flags&cmdFlagDF != 0 {
			return refuseUnsplit
		}
		if r.len > MaxPayload {
			return refuseLength
		}
	case CmdWrite, CmdTrim, CmdWriteZeroes:
		if dev.ReadOnly() {
			return refuseReadOnly
		}
		if r.cmd == CmdWrite && r.len > MaxPayload {
			return refuseLength
		}
	}
	if size := dev.Size(); r.off > size || uint64(r.len) > size-r.off {
		if r.cmd == CmdWrite || r.cmd == CmdWriteZeroes {
			return refuseBeyondWrite
		}
		return refuseBeyond
	}
	return accepted
}

// allowedFlags returns the command flags that are valid. FUA is valid with every command, as the protocol demands.
func (r *request) allowedFlags(structured bool) uint16 {
	switch {
	case r.cmd == CmdRead && structured:
		return cmdFlagFUA | cmdFlagDF
	case r.cmd == CmdWriteZeroes:
		return cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero
	}
	return cmdFlagFUA
}
