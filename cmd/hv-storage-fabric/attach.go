package main

import (
	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

func newVolumeAttach(a *app) *cobra.Command {
	in := client.AttachVolumeInput{}
	c := &cobra.Command{
		Use:   "attach NAME",
		Short: "Export a volume over NBD and print its URI",
		Long: `Export a volume over NBD and print its URI, for QEMU, nbdcopy and the like. The export is there again after a restart of hvd, until
the volume is detached. To attach it again in the same way prints the URI and changes nothing.

The NBD socket of hvd serves all attached volumes and is open to hvd's own user only. With --socket-per-volume there is one more
socket, which shows this volume only, for a hypervisor that runs as another user.`,
		Example: `  hv-storage-fabric volume attach web1
  hv-storage-fabric volume attach web1 --socket-per-volume --owner libvirt-qemu:kvm --mode 0660`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			if !in.SocketPerVolume && (in.Owner != "" || in.Mode != "") {
				return usagef("--owner and --mode go with --socket-per-volume")
			}
			in.Name = args[0]
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
			return a.show(attachment, func() { a.say("%s", attachment.URI) })
		},
	}
	c.Flags().BoolVar(&in.SocketPerVolume, "socket-per-volume", false, "add a socket that serves this volume only")
	c.Flags().StringVar(&in.Owner, "owner", "", "USER[:GROUP] of that socket, names or numbers (default: hvd's own)")
	c.Flags().StringVar(&in.Mode, "mode", "", "octal permissions of that socket (default 0600)")
	return c
}

func newVolumeDetach(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "detach NAME",
		Short: "End the export of a volume",
		Long: `End the export of a volume. Refused while clients are connected, as a guest would lose its disk; --force finishes their requests in
flight and ends their connections.`,
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
