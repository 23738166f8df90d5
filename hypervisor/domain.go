package hypervisor

import (
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// MaxXML bounds a definition, in bytes: libvirt's own protocol carries no longer text.
const MaxXML = 4 << 20

// Bounds of what a definition may have.
const (
	maxDevices = 4096
	maxText    = 4096 // bytes of a name or a path
	maxDepth   = 256  // elements in each other, as many as libvirt's parser takes
)

// Domain is what is known of a machine by its definition.
type Domain struct {
	Type  string // kvm, qemu, …
	Name  string
	UUID  string // as libvirt writes it
	MACs  []string
	Disks []Disk
	NVRAM NVRAM
	UEFI  bool   // its firmware is UEFI, not a BIOS
	TPM   string // of its first emulated TPM: "1.2" or "2.0", "default" where none is given; "" without one
	Agent Agent
}

// Agent is the state of the channel of qemu-guest-agent.
type Agent string

// States of the channel. Only the definition of a running machine tells the last two.
const (
	AgentNone         Agent = ""
	AgentUnknown      Agent = "unknown"
	AgentConnected    Agent = "connected"
	AgentDisconnected Agent = "disconnected"
)

// Disk is a disk, a CD drive or the like.
type Disk struct {
	Target string // what the definition calls it, such as vda: unique in it
	Device string // disk, cdrom, lun or floppy
	Kind   string // file, block, network, volume, …
	Bus    string // virtio, sata, scsi, …; "": libvirt chooses
	Boot   uint   // its place in the order in which the machine tries to boot, from 1 on; 0: none of its own

	Path string // of kind file or block; empty for an empty drive

	Protocol  string // of kind network: nbd, rbd, …
	Export    string // its name for the server
	Transport string // tcp, unix, …
	Host      string // the first one's
	Port      string
	Socket    string
}

// Where says in a few words what the disk is read from.
func (d *Disk) Where() string {
	switch {
	case d.Kind == "network" && d.Socket != "":
		return fmt.Sprintf("%s %s at %s", d.Protocol, d.Export, d.Socket)
	case d.Kind == "network":
		return fmt.Sprintf("%s %s at %s:%s", d.Protocol, d.Export, d.Host, d.Port)
	case d.Path == "":
		return "a source of type " + d.Kind
	}
	return d.Path
}

// NVRAM is where the variables of a machine's UEFI firmware are.
type NVRAM struct {
	Has  bool
	Path string // "": libvirt has not chosen one yet, or it is no file
	Kind string // "file", or what else it lies on
}

// The parts of a definition that are read.
type domainXML struct {
	XMLName xml.Name `xml:"domain"`
	Type    string   `xml:"type,attr"`
	Name    string   `xml:"name"`
	UUID    string   `xml:"uuid"`
	OS      struct {
		Firmware string `xml:"firmware,attr"`
		Loader   struct {
			Type string `xml:"type,attr"`
		} `xml:"loader"`
		NVRAM *struct {
			Type   string    `xml:"type,attr"`
			Path   string    `xml:",chardata"`
			Source sourceXML `xml:"source"`
		} `xml:"nvram"`
	} `xml:"os"`
	Interfaces []struct {
		MAC struct {
			Address string `xml:"address,attr"`
		} `xml:"mac"`
	} `xml:"devices>interface"`
	Disks []struct {
		Type   string    `xml:"type,attr"`
		Device string    `xml:"device,attr"`
		Source sourceXML `xml:"source"`
		Target struct {
			Dev string `xml:"dev,attr"`
			Bus string `xml:"bus,attr"`
		} `xml:"target"`
		Boot struct {
			Order string `xml:"order,attr"`
		} `xml:"boot"`
	} `xml:"devices>disk"`
	TPMs []struct {
		Backend struct {
			Type    string `xml:"type,attr"`
			Version string `xml:"version,attr"`
		} `xml:"backend"`
	} `xml:"devices>tpm"`
	Channels []struct {
		Target struct {
			Name  string `xml:"name,attr"`
			State string `xml:"state,attr"`
		} `xml:"target"`
	} `xml:"devices>channel"`
}

type sourceXML struct {
	File     string `xml:"file,attr"`
	Dev      string `xml:"dev,attr"`
	Protocol string `xml:"protocol,attr"`
	Name     string `xml:"name,attr"`
	Hosts    []struct {
		Name      string `xml:"name,attr"`
		Port      string `xml:"port,attr"`
		Transport string `xml:"transport,attr"`
		Socket    string `xml:"socket,attr"`
	} `xml:"host"`
}

// Parse reads a definition.
func Parse(text string) (*Domain, error) {
	if len(text) > MaxXML {
		return nil, corrupt("more than %d B", MaxXML)
	}
	if err := unambiguous(text); err != nil {
		return nil, err
	}
	var x domainXML
	if err := xml.NewTokenDecoder(plain{xml.NewDecoder(strings.NewReader(text))}).Decode(&x); err != nil {
		return nil, corrupt("no XML of a domain") // the error could quote a password
	}
	d := &Domain{Type: x.Type, Name: x.Name, UUID: x.UUID}
	if len(x.Disks)+len(x.Interfaces)+len(x.Channels)+len(x.TPMs) > maxDevices {
		return nil, corrupt("more than %d devices", maxDevices)
	}
	if x.Name == "" || len(x.Name) > maxText || strings.Contains(x.Name, "/") || strings.ContainsFunc(x.Name, unicode.IsControl) {
		return nil, corrupt("no name, or one that is none")
	}
	if _, err := uuid.Parse(x.UUID); err != nil || len(x.UUID) != len(uuid.Nil.String()) {
		return nil, corrupt("no UUID")
	}
	if nvram := x.OS.NVRAM; nvram != nil {
		d.NVRAM = NVRAM{Has: true, Kind: nvram.Type, Path: strings.TrimSpace(nvram.Path)}
		if d.NVRAM.Kind == "" {
			d.NVRAM.Kind = "file"
		}
		if d.NVRAM.Path == "" && d.NVRAM.Kind == "file" {
			d.NVRAM.Path = nvram.Source.File
		}
	}
	d.UEFI = d.NVRAM.Has || x.OS.Firmware == "efi" || x.OS.Loader.Type == "pflash"
	for _, i := range x.Interfaces {
		if i.MAC.Address != "" {
			d.MACs = append(d.MACs, i.MAC.Address)
		}
	}
	targets := make(map[string]bool)
	for _, disk := range x.Disks {
		one := Disk{Target: disk.Target.Dev, Device: disk.Device, Kind: disk.Type, Bus: disk.Target.Bus, Path: disk.Source.File, Protocol: disk.Source.Protocol, Export: disk.Source.Name}
		if one.Device == "" {
			one.Device = "disk"
		}
		if one.Kind == "block" {
			one.Path = disk.Source.Dev
		}
		if order, err := strconv.ParseUint(disk.Boot.Order, 10, 16); err == nil {
			one.Boot = uint(order)
		}
		if len(disk.Source.Hosts) > 0 {
			host := disk.Source.Hosts[0]
			one.Transport, one.Host, one.Port, one.Socket = host.Transport, host.Name, host.Port, host.Socket
			if one.Transport == "" {
				one.Transport = "tcp"
			}
		}
		if one.Target == "" || targets[one.Target] {
			return nil, corrupt("a disk without a target of its own")
		}
		targets[one.Target] = true
		d.Disks = append(d.Disks, one)
	}
	for _, tpm := range x.TPMs {
		if tpm.Backend.Type == "emulator" && d.TPM == "" {
			if d.TPM = tpm.Backend.Version; d.TPM == "" {
				d.TPM = "default"
			}
		}
	}
	for _, channel := range x.Channels {
		if channel.Target.Name == "org.qemu.guest_agent.0" {
			if d.Agent = Agent(channel.Target.State); d.Agent != AgentConnected && d.Agent != AgentDisconnected {
				d.Agent = AgentUnknown
			}
		}
	}
	return d, d.bound()
}

// bound checks the lengths of what is used elsewhere.
func (d *Domain) bound() error {
	for _, disk := range d.Disks {
		for _, text := range []string{disk.Target, disk.Device, disk.Kind, disk.Bus, disk.Path, disk.Protocol, disk.Export, disk.Host, disk.Port, disk.Socket} {
			if len(text) > maxText {
				return corrupt("a disk with a text of more than %d B", maxText)
			}
		}
		if strings.ContainsAny(disk.Target, "/\x00") || disk.Target == "." || disk.Target == ".." {
			return corrupt("a disk whose target is no name")
		}
	}
	for _, text := range append([]string{d.Type, d.TPM, d.NVRAM.Path, d.NVRAM.Kind}, d.MACs...) {
		if len(text) > maxText {
			return corrupt("a text of more than %d B", maxText)
		}
	}
	return nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("definition of a domain: %s: %w", fmt.Sprintf(format, args...), block.ErrCorrupt)
}
