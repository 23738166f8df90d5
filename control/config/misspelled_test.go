package config

import (
	"slices"
	"testing"
)

// A variable that is nearly a known one is told with that; known ones, and those of others, are not.
func TestMisspelledVariables(t *testing.T) {
	got := Misspelled([]string{
		"HV_STORE_LOGCAP=1GiB", "HV_STORE_LOG_CAP=1GiB", "HV_MEMROY=1", "hv_memory=1", "HV_DATADIR=/x", "HV_ENDPIONT=unix:/x", "HVMEMORY=1",
		"HV_REQUIRE_TOOLS=1", "HV_NIGHTLY=1", "HV_BIN=x", "HVAC=on", "HV_TOKEN=x", "HV_CONFIG=x", "PATH=/bin", "HV_=", "=x", "HV_NBD_TLS_PSKFILE=x",
	})
	want := []Misspelling{
		{"HVMEMORY", "HV_MEMORY"}, {"HV_DATADIR", "HV_DATA_DIR"}, {"HV_ENDPIONT", "HV_ENDPOINT"}, {"HV_MEMROY", "HV_MEMORY"}, {"HV_NBD_TLS_PSKFILE", "HV_NBD_TLS_PSK_FILE"},
		{"HV_STORE_LOGCAP", "HV_STORE_LOG_CAP"}, {"hv_memory", "HV_MEMORY"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
