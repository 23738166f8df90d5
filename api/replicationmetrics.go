package api

import "github.com/hyper-nixos/hyper-nixos/control"

// replicationMetric is a family of samples, one for each replication that has it.
type replicationMetric struct {
	name, kind, help string
	value            func(control.Replication) (v float64, has bool)
}

func always(f func(control.Replication) float64) func(control.Replication) (float64, bool) {
	return func(r control.Replication) (float64, bool) { return f(r), true }
}

var replicationMetrics = []replicationMetric{
	{"hv_replication_rpo_seconds", "gauge", "Age of the last complete point: what a promotion now would lose. Missing until there is one.", func(r control.Replication) (float64, bool) {
		if r.RPOSeconds == nil {
			return 0, false
		}
		return *r.RPOSeconds, true
	}},
	{"hv_replication_behind_bytes", "gauge", "What differs at the source from the last complete point. Missing where it is not known.", func(r control.Replication) (float64, bool) {
		if r.BehindBytes == nil {
			return 0, false
		}
		return float64(*r.BehindBytes), true
	}},
	{"hv_replication_rate_bytes_per_second", "gauge", "Data of the point under way, or of the last one that had any, a second.", always(func(r control.Replication) float64 { return r.RateBytes })},
	{"hv_replication_limit_bytes_per_second", "gauge", "What a source may send a second, with all of its group. Missing without a limit.", func(r control.Replication) (float64, bool) {
		return float64(r.LimitBytes), r.LimitBytes > 0
	}},
	{"hv_replication_epoch", "gauge", "Epoch of this side.", always(func(r control.Replication) float64 { return float64(r.Epoch) })},
	{"hv_replication_fenced", "gauge", "1 if the other side was promoted and this one takes no writes.", always(func(r control.Replication) float64 { return number(r.FencedBy != 0) })},
	{"hv_replication_points_total", "counter", "Points that became complete since hvd started.", always(func(r control.Replication) float64 { return float64(r.Cycles) })},
	{"hv_replication_failures_total", "counter", "Tries that did not, since hvd started.", always(func(r control.Replication) float64 { return float64(r.Failures) })},
	{"hv_replication_data_bytes_total", "counter", "Data in complete points since hvd started.", always(func(r control.Replication) float64 { return float64(r.DataBytes) })},
	{"hv_replication_wire_bytes_total", "counter", "What a source sent for that.", always(func(r control.Replication) float64 { return float64(r.WireBytes) })},
}

// replications writes how volumes are replicated.
func (m exposition) replications(all []control.Replication) {
	if len(all) == 0 {
		return
	}
	for _, family := range replicationMetrics {
		m.family(family.name, family.kind, family.help)
		for _, one := range all {
			if v, has := family.value(one); has {
				m.sample(family.name, v, "volume", one.Volume, "role", one.Role)
			}
		}
	}
}
