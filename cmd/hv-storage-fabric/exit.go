package main

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// Exit codes are part of the interface.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitUnreachable = 6 // as hv-backup has it; its 5 is damage
)

// exitCodes of what hvd said. Other codes are failures.
var exitCodes = map[string]int{
	client.CodeInvalid:         exitUsage,
	client.CodeNotFound:        exitNotFound,
	client.CodeExists:          exitRefused,
	client.CodeInUse:           exitRefused,
	client.CodeProtected:       exitRefused,
	client.CodeRefused:         exitRefused,
	client.CodeReadOnly:        exitRefused,
	client.CodeForbidden:       exitRefused,
	client.CodeUnauthenticated: exitRefused,
	client.CodeBusy:            exitRefused,
}

// judge returns the exit code of an error, and what to do next.
func judge(command *cobra.Command, err error) (code int, hint string) {
	var usage *usageError
	var said *client.Error
	var unreachable *client.UnreachableError
	switch {
	case errors.As(err, &said):
		return max(exitFailed, exitCodes[said.Code]), hintFor(command.Name(), said.Code)
	case errors.As(err, &unreachable) && errors.Is(err, fs.ErrPermission):
		return exitRefused, "its socket is for root and the user that hvd runs as"
	case errors.As(err, &unreachable):
		return exitUnreachable, "start hvd, or say where it is with --endpoint or HV_ENDPOINT"
	case errors.As(err, &usage):
		return exitUsage, "see `" + command.CommandPath() + " --help`"
	case errors.Is(err, errRefused), errors.Is(err, block.ErrInUse), errors.Is(err, keyring.ErrWrongKey), errors.Is(err, secret.ErrExposed):
		return exitRefused, ""
	case errors.Is(err, block.ErrVersion):
		return exitFailed, "use the version that wrote it, or a newer one"
	case errors.Is(err, block.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return exitNotFound, ""
	case errors.Is(err, block.ErrInvalid), strings.HasPrefix(err.Error(), "required flag"), strings.HasPrefix(err.Error(), "unknown "):
		return exitUsage, "see `" + command.CommandPath() + " --help`"
	}
	return exitFailed, ""
}

// hintFor says what to do next about a code that a command got.
func hintFor(command, code string) string {
	switch code {
	case client.CodeInUse:
		switch command {
		case "detach":
			return "stop the guest, or end the connections with --force"
		case "attach":
			return "`hv-storage-fabric volume show` prints its URIs as it is, `hv-storage-fabric volume detach` ends them"
		case "set", "clear":
			return "`hv-backup cdp exports` shows which moments of its history are attached, `hv-backup cdp detach` ends that"
		case "delete", "rename", "resize", "rollback":
			return "see who uses it with `hv-storage-fabric volume show`, and `hv-backup cdp exports` for moments of its history; an attached volume goes free with `hv-storage-fabric volume detach`"
		}
		return "try again when that has ended"
	case client.CodeProtected:
		return "`hv-storage-fabric snapshot unprotect VOLUME@SNAPSHOT` allows it again"
	case client.CodeRefused:
		if command == "resize" {
			return "if that is what you want, add --shrink, and --force for an attached volume"
		}
		if command == "attach" {
			return "`hv-storage-fabric volume attach --help` says what is needed"
		}
	case client.CodeNotFound:
		switch command {
		case "revoke":
			return "`hv-storage-fabric token list` shows what there is"
		case "detach":
			return "`hv-storage-fabric volume list` shows what is attached"
		}
		return "`hv-storage-fabric volume list` and `snapshot list VOLUME` show what there is"
	case client.CodeExists:
		return "choose another name, or delete the other one first"
	case client.CodeNoSpace:
		return "delete volumes or snapshots that are not needed, or make the file system larger; `hv-storage-fabric store stats` shows where the space is"
	case client.CodeUnauthenticated:
		return "give a token with --token-file or HV_TOKEN, or use the unix socket"
	case client.CodeForbidden:
		return "use a token of a larger scope, or the unix socket as the user of hvd"
	}
	return ""
}
