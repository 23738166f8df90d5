package config

import (
	"os"
	"path/filepath"
)

// Endpoint returns where hvd listens: what the user chose, else $HV_ENDPOINT, else the system daemon's socket if there is one, else the user's.
func Endpoint(chosen string, getenv func(string) string) string {
	if chosen != "" {
		return chosen
	}
	if endpoint := getenv("HV_ENDPOINT"); endpoint != "" {
		return endpoint
	}
	system := filepath.Join(SystemDataDir, "hvd.sock")
	if exists(system) {
		return "unix:" + system
	}
	if dir := UserDataDir(); dir != "" {
		if user := filepath.Join(dir, "hvd.sock"); os.Geteuid() != 0 || exists(user) {
			return "unix:" + user
		}
	}
	return "unix:" + system
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
