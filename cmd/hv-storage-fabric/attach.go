package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

func newVolumeAttach(a *app) *cobra.Command {
	in := client.AttachVolumeInput{}
	c := &cobra.Command{
		Use:   "attach NAME[@SNAPSHOT]",
		Short: "Export a volume over NBD and print its URI",
		Long: `Export a volume over NBD and print its URI, for QEMU, nbdcopy and the like. The export is there again after a restart of hvd, until
the volume is detached. To attach it again in the same way prints the URI and changes nothing.

The NBD socket of hvd serves all attached volumes and is open to hvd's own user only. With --socket-per-volume there is one more
socket, which shows this volume only, for a hypervisor that runs as another user.

With --tcp the volume is served at nbd.listen as well, and that URI is printed. --client names the certificates that may use it, by common
name or DNS name, and the pre-shared keys, as psk:IDENTITY. Over TCP every change is durable before its reply; with --writeback only what is flushed is, as on the socket.
If the machine of hvd goes down then, a client that had written is not let in again, as its writes may be lost; --force lets it in.

Every snapshot of an attached volume is an export of its own, read-only: NAME@SNAPSHOT prints its URI.

--inject makes requests slow or fail on purpose, to see what a guest does then: delay=TIME, jitter=TIME, error=SHARE, errno=EIO|ENOSPC|ENOMEM,
rate=BYTES/s, on=read+write+…, seed=N. Given again it changes that at once, also for connected clients; --inject none ends it, as detach does.`,
		Example: `  hv-storage-fabric volume attach web1
  hv-storage-fabric volume attach web1 --socket-per-volume --owner libvirt-qemu:kvm --mode 0660
  hv-storage-fabric volume attach web1 --tcp --client node1.example --client node2.example
  hv-storage-fabric volume attach web1@monday
  hv-storage-fabric volume attach test1 --inject delay=20ms,jitter=5ms,error=0.001`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			volume, snapshot, err := splitSnapshot(args[0])
			if err != nil {
				return err
			}
			if snapshot != "" {
				return a.showSnapshotExport(c, volume, snapshot)
			}
			in.Name = volume
			return a.attach(c, in)
		},
	}
	f := c.Flags()
	f.BoolVar(&in.SocketPerVolume, "socket-per-volume", false, "add a socket that serves this volume only")
	f.StringVar(&in.Owner, "owner", "", "USER[:GROUP] of that socket, names or numbers (default: hvd's own)")
	f.StringVar(&in.Mode, "mode", "", "octal permissions of that socket (default 0600)")
	f.BoolVar(&in.Tcp, "tcp", false, "serve it over TCP as well, at nbd.listen")
	f.StringSliceVar(&in.Clients, "client", nil, "client that may use it over TCP: a name in its certificate, or psk:IDENTITY for one with a pre-shared key; may be given again (default: all that have either)")
	f.BoolVar(&in.TcpWriteback, "writeback", false, "over TCP, reply to writes before they are durable, if the volume's mode is writeback")
	f.BoolVar(&in.Force, "force", false, "serve it over TCP again although writes of a client may be lost")
	f.BoolVar(&in.ReadOnly, "read-only", false, "refuse every change")
	f.StringVar(&in.Inject, "inject", "", "what shall go wrong, such as delay=10ms,error=0.01,rate=10MB/s; none: nothing any more")
	_ = c.RegisterFlagCompletionFunc("inject", cobra.FixedCompletions([]string{"delay=", "error=", "rate=", "none"}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
	for _, text := range []string{"client", "mode", "owner"} {
		_ = c.RegisterFlagCompletionFunc(text, cobra.NoFileCompletions)
	}
	return c
}

// attach exports a volume and prints the URI that was asked for.
func (a *app) attach(c *cobra.Command, in client.AttachVolumeInput) error {
	switch {
	case !in.SocketPerVolume && (in.Owner != "" || in.Mode != ""):
		return usagef("--owner and --mode go with --socket-per-volume")
	case !in.Tcp && (len(in.Clients) > 0 || in.TcpWriteback || in.Force):
		return usagef("--client, --writeback and --force go with --tcp")
	}
	api, err := a.connect()
	if err != nil {
		return err
	}
	reply, err := client.AttachVolume(c.Context(), api, in)
	if err != nil {
		return err
	}
	if warning := reply.AttachVolume.Warning; warning != "" {
		a.note("warning: %s", warning)
	}
	attachment := viewAttachment(reply.AttachVolume.Attachment)
	if attachment.Inject != "" {
		a.note("FAULTS ON PURPOSE in volume %s: %s", attachment.Volume, attachment.Inject)
	}
	if attachment.Problem != "" {
		a.note("not served: %s", attachment.Problem)
	}
	return a.show(attachment, func() { a.say("%s", attachment.uriFor(in.Tcp)) })
}

// uriFor is the URI for clients on this machine or over TCP.
func (at *attachmentView) uriFor(tcp bool) string {
	if tcp {
		return at.TCPURI
	}
	return at.URI
}

// showSnapshotExport prints the URI of a snapshot of an attached volume. There is nothing to choose about it but which URI.
func (a *app) showSnapshotExport(c *cobra.Command, volume, snapshot string) error {
	tcp := false
	var wrong []string
	c.Flags().Visit(func(f *pflag.Flag) {
		switch {
		case f.Name == "tcp":
			tcp = true
		case c.LocalFlags().Lookup(f.Name) != nil && f.Name != "read-only":
			wrong = append(wrong, "--"+f.Name)
		}
	})
	if len(wrong) > 0 {
		return usagef("%s@%s is exported as its volume is: %s cannot be chosen for a snapshot", volume, snapshot, strings.Join(wrong, ", "))
	}
	api, err := a.connect()
	if err != nil {
		return err
	}
	reply, err := client.SnapshotExport(c.Context(), api, volume, snapshot)
	if err != nil {
		return err
	}
	attachment := viewAttachment(reply.SnapshotExport)
	if tcp && attachment.TCPURI == "" {
		return fmt.Errorf("volume %s is not served over TCP; attach it with --tcp: %w", volume, errRefused)
	}
	return a.show(attachment, func() { a.say("%s", attachment.uriFor(tcp)) })
}

func newVolumeDetach(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "detach NAME",
		Short: "End the export of a volume",
		Long: `End the export of a volume. Refused while clients are connected, as a guest would lose its disk; --force finishes their requests in
flight and ends their connections.`,
		Example:           "  hv-storage-fabric volume detach web1\n  hv-storage-fabric volume detach web1 --force",
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := client.DetachVolume(c.Context(), api, args[0], force); err != nil {
				return err
			}
			return a.show(map[string]any{"name": args[0], "detached": true}, func() { a.say("detached volume %s", args[0]) })
		},
	}
	c.Flags().BoolVar(&force, "force", false, "end the connections of clients")
	return c
}
