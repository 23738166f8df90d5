package api

import "github.com/hyper-nixos/hyper-nixos/backup/host"

var repositoryMetrics = []struct {
	name, help string
	value      func(host.Stats) uint64
}{
	{"hv_repository_stored_objects_total", "Objects of backups of other machines that were stored since hvd started.", func(s host.Stats) uint64 { return s.Stored }},
	{"hv_repository_stored_bytes_total", "Their bytes.", func(s host.Stats) uint64 { return s.StoredBytes }},
	{"hv_repository_sent_bytes_total", "Bytes of objects that were read.", func(s host.Stats) uint64 { return s.SentBytes }},
	{"hv_repository_deleted_objects_total", "Objects that were deleted.", func(s host.Stats) uint64 { return s.Deleted }},
	{"hv_repository_refused_total", "Requests that a client may not make, or not yet.", func(s host.Stats) uint64 { return s.Refused }},
	{"hv_repository_failures_total", "Requests that this machine could not do.", func(s host.Stats) uint64 { return s.Failed }},
}

// repositories writes what became of repositories that others keep here.
func (m exposition) repositories(all []host.Stats) {
	if len(all) == 0 {
		return
	}
	for _, family := range repositoryMetrics {
		m.family(family.name, "counter", family.help)
		for _, one := range all {
			m.sample(family.name, float64(family.value(one)), "repository", one.Repository)
		}
	}
}
