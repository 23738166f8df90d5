package guest

import (
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"strings"
)

// scripts holds what runs inside the guest.
//
//go:embed scripts
var scripts embed.FS

// scriptPath is where an extra archive puts BootOptions.Script, and where scripts/initramfs.sh looks for it.
const scriptPath = "hv-script"

// script returns one embedded file. The names are constants of this package, so a miss is a broken build.
func script(name string) []byte {
	body, err := scripts.ReadFile("scripts/" + name)
	if err != nil {
		panic(fmt.Sprintf("guest: embedded file: %v", err))
	}
	return body
}

// writeInitramfs writes a gzipped archive with the static busybox, the init script and the modules in insmod order.
func writeInitramfs(w io.Writer, busybox []byte, modules []kernelModule) error {
	zip, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	archive := newCPIOWriter(zip)
	archive.dir("dev")
	// Without this node the kernel starts init with no standard output, and all markers are lost.
	archive.charDev("dev/console", 5, 1)
	archive.dir("bin")
	archive.file("bin/busybox", 0o755, busybox)
	archive.file("init", 0o755, script("initramfs.sh"))
	archive.dir("modules")
	var order strings.Builder
	for _, module := range modules {
		archive.file("modules/"+module.name+".ko", 0o644, module.elf)
		fmt.Fprintf(&order, "%s.ko\n", module.name)
	}
	archive.file("modules/order", 0o644, []byte(order.String()))
	if err := archive.Close(); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	if err := zip.Close(); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}

// writeScriptArchive writes an uncompressed archive to append to an initramfs: the kernel unpacks archives one after another.
func writeScriptArchive(w io.Writer, body string) error {
	archive := newCPIOWriter(w)
	archive.file(scriptPath, 0o755, []byte(body))
	return archive.Close()
}
