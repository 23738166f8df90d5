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

// usage writes what repositories and their clients hold that have quotas.
func (m exposition) usage(all []host.Usage) {
	if len(all) == 0 {
		return
	}
	for _, family := range []struct {
		name, help string
		ofPeer     bool
		value      func(host.Usage) uint64
	}{
		{"hv_repository_used_bytes", "Objects of a repository with a quota.", false, func(u host.Usage) uint64 { return u.UsedBytes }},
		{"hv_repository_quota_bytes", "What a repository may hold.", false, func(u host.Usage) uint64 { return u.QuotaBytes }},
		{"hv_repository_peer_used_bytes", "Objects that a client with a quota has stored, in all repositories.", true, func(u host.Usage) uint64 { return u.UsedBytes }},
		{"hv_repository_peer_quota_bytes", "What a client may have stored.", true, func(u host.Usage) uint64 { return u.QuotaBytes }},
	} {
		m.family(family.name, "gauge", family.help)
		for _, one := range all {
			switch {
			case family.ofPeer && one.Peer != "":
				m.sample(family.name, float64(family.value(one)), "peer", one.Peer)
			case !family.ofPeer && one.Peer == "":
				m.sample(family.name, float64(family.value(one)), "repository", one.Repository)
			}
		}
	}
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
