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
	CmdBlockStatus Command = 7

	commandCount = 8
)

var commandNames = [commandCount]string{"read", "write", "disc", "flush", "trim", "cache", "write-zeroes", "block-status"}

// String returns the protocol's name of the command in lower case.
func (c Command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return "unknown"
}

// request is the header of one request.
type request struct {
	flags   uint16
	cmd     Command
	payload bool // len bytes follow the header
	cookie  uint64
	off     uint64 // bytes
	len     uint64 // bytes
}

// parseRequest decodes the header in p, which holds it whole; ok is false when its magic is wrong.
func parseRequest(p []byte, f framing) (r request, ok bool) {
	_ = p[27]
	r = request{
		flags:  be.Uint16(p[4:]),
		cmd:    Command(be.Uint16(p[6:])),
		cookie: be.Uint64(p[8:]),
		off:    be.Uint64(p[16:]),
	}
	if f == extendedHeaders {
		r.len = be.Uint64(p[24:])
		r.payload = r.flags&cmdFlagPayload != 0
		return r, be.Uint32(p) == magicExtendedRequest
	}
	r.len = uint64(be.Uint32(p[24:]))
	r.payload = r.cmd == CmdWrite
	return r, be.Uint32(p) == magicRequest
}

func (r *request) fua() bool { return r.flags&cmdFlagFUA != 0 }

// check decides whether the device may be asked at all. It is the only place where requests are validated; what passes lies inside the
// device, and its payload inside MaxPayload. status reports that metadata contexts were agreed on.
func (r *request) check(dev Device, f framing, status bool) refusal {
	if r.cmd >= commandCount {
		return refuseCommand
	}
	if r.flags&^r.allowedFlags(f, status) != 0 {
		return refuseFlags
	}
	if why := r.checkLength(f, status); why != accepted {
		return why
	}
	switch r.cmd {
	case CmdFlush:
		return accepted
	case CmdWrite, CmdTrim, CmdWriteZeroes:
		if dev.ReadOnly() {
			return refuseReadOnly
		}
	}
	if size := dev.Size(); r.off > size || r.len > size-r.off {
		if r.cmd == CmdWrite || r.cmd == CmdWriteZeroes {
			return refuseBeyondWrite
		}
		return refuseBeyond
	}
	return accepted
}

// checkLength is the part of check that looks at the length alone.
func (r *request) checkLength(f framing, status bool) refusal {
	switch r.cmd {
	case CmdFlush:
		if r.off != 0 || r.len != 0 {
			return refuseFlushRange
		}
	case CmdRead:
		switch {
		case r.len <= MaxPayload:
		case f == extendedHeaders, r.flags&cmdFlagDF != 0:
			return refuseUnsplit
		default:
			return refuseLength
		}
	case CmdWrite:
		if !r.payload {
			return refusePayload
		}
		if r.len > MaxPayload {
			return refuseLength
		}
	case CmdBlockStatus:
		if !status {
			return refuseContexts
		}
		if r.len == 0 {
			return refuseNothing
		}
	}
	return accepted
}

// allowedFlags returns the command flags that are valid. FUA is valid with every command, as the protocol demands.
func (r *request) allowedFlags(f framing, status bool) uint16 {
	flags := cmdFlagFUA
	switch r.cmd {
	case CmdRead:
		if f != simpleReplies {
			flags |= cmdFlagDF
		}
	case CmdWrite:
		if f == extendedHeaders {
			flags |= cmdFlagPayload
		}
	case CmdWriteZeroes:
		flags |= cmdFlagNoHole | cmdFlagFastZero
	case CmdBlockStatus:
		flags |= cmdFlagReqOne
		if f == extendedHeaders && status {
			flags |= cmdFlagPayload
		}
	}
	return flags
}
