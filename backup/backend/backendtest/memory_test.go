package backendtest

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
)

func TestMemory(t *testing.T) {
	m := new(Memory)
	Run(t, func(*testing.T) backend.Backend { return m })
}
